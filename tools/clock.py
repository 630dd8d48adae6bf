"""The date and the time, in any time zone of the IANA's database."""

from __future__ import annotations

import zoneinfo
from datetime import datetime, timezone
from functools import lru_cache

from model.json_file import shown

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# Cities by which no time zone is named, and the Chinese names of those asked for most.
CITY_NAMES = {
    "Asia/Shanghai": "beijing guangzhou shenzhen hangzhou 北京 上海 广州 深圳 杭州 成都 重庆 武汉 "
                     "西安 南京 天津 中国",
    "Asia/Tokyo": "osaka kyoto 东京 大阪 京都 日本", "Asia/Seoul": "首尔", "Asia/Dubai": "迪拜",
    "Asia/Hong_Kong": "香港", "Asia/Taipei": "台北", "Asia/Singapore": "新加坡",
    "Asia/Bangkok": "曼谷", "Asia/Kolkata": "delhi new_delhi mumbai bangalore 新德里 孟买",
    "Europe/London": "伦敦 edinburgh manchester 英国", "Europe/Paris": "巴黎 法国",
    "Europe/Berlin": "munich hamburg frankfurt cologne 柏林 慕尼黑 德国",
    "Europe/Madrid": "barcelona 马德里 巴塞罗那", "Europe/Rome": "milan naples 罗马 米兰",
    "Europe/Zurich": "geneva 苏黎世 日内瓦", "Europe/Vienna": "维也纳", "Europe/Moscow": "莫斯科",
    "Europe/Dublin": "都柏林", "Europe/Oslo": "奥斯陆", "Europe/Athens": "雅典",
    "Europe/Amsterdam": "阿姆斯特丹", "Africa/Cairo": "开罗", "America/Chicago": "芝加哥",
    "America/New_York": "washington boston miami 纽约 华盛顿 波士顿",
    "America/Los_Angeles": "san_francisco seattle las_vegas 洛杉矶 旧金山 西雅图",
    "America/Toronto": "ottawa montreal 多伦多 渥太华", "Australia/Sydney": "悉尼",
    "Australia/Melbourne": "墨尔本",
}  # fmt: skip
CITIES = {name: zone for zone, names in CITY_NAMES.items() for name in names.split()}


def get_time(city: str = "") -> dict:
    """Get the date and time in a city.

    city: such as Paris, 北京 or Europe/Paris; empty for here
    """
    return time_in(city, datetime.now(timezone.utc))


def time_in(city: str, now: datetime) -> dict:
    """What the clocks show in a place, or here for "", at a moment (with a time zone of its own).

    Raises ValueError for a place that is no time zone and names none.
    """
    zone = find_zone(city) if city.strip() else None
    there = now.astimezone(zone)
    offset = there.strftime("%z")
    return {
        "date": there.strftime("%Y-%m-%d"),
        "time": there.strftime("%H:%M"),
        "weekday": WEEKDAYS[there.weekday()],
        "time_zone": str(zone) if zone else there.tzname(),
        "utc_offset": f"{offset[:3]}:{offset[3:5]}",
    }


def find_zone(city: str) -> zoneinfo.ZoneInfo | timezone:
    """The time zone of a name like Europe/Paris, or of a city that names one; ValueError if none.

    Only names of the database are opened: they are file names, and what is asked for is anyone's.
    """
    key = "_".join(city[:100].casefold().split())
    if key in ("utc", "gmt", "z"):
        return timezone.utc
    name = CITIES.get(key) or _zones().get(key)
    if name is None:
        raise ValueError(
            f"unknown city {shown(city, 40)!r}; expected a time zone such as Europe/Paris, or a "
            "city that names one"
        )
    return zoneinfo.ZoneInfo(name)


@lru_cache
def _zones() -> dict[str, str]:
    """Time zones by their names and by their cities, without regard to case."""
    names = sorted(zoneinfo.available_timezones(), key=lambda name: (name.count("/"), name))
    found = {name.casefold(): name for name in names}
    for name in names:  # America/Louisville rather than America/Kentucky/Louisville, the same
        if "/" in name and not name.startswith("Etc/"):
            found.setdefault(name.rpartition("/")[2].casefold(), name)
    return found
