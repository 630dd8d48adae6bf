"""How a route says no: the app answers with OpenAI's error object."""


class APIError(Exception):
    """status: of HTTP; param: the field that is wrong; code: a word for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
