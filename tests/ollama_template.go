// What Ollama does with a TEMPLATE, as far as these tests need it: its values have these names and
// print themselves as JSON. Reads {template, conversations} and prints the rendered texts as JSON.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Arguments map[string]any
type Function struct {
	Name       string          `json:"name"`
	Parameters json.RawMessage `json:"parameters"`
}
type Call struct {
	Function struct {
		Name      string
		Arguments Arguments
	}
}
type Message struct {
	Role, Content, Thinking string
	ToolCalls               []Call
}
type Tool struct{ Function Function }
type Conversation struct {
	Messages          []*Message
	Tools             []Tool
	Think, IsThinkSet bool
}

func (a Arguments) String() string { text, _ := json.Marshal(a); return string(text) }
func (f Function) String() string  { text, _ := json.Marshal(f); return string(text) }

func main() {
	var input struct {
		Template      string
		Conversations []Conversation
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(input.Template))
	texts := []string{}
	for _, c := range input.Conversations {
		var text strings.Builder
		values := map[string]any{"Messages": c.Messages, "Tools": c.Tools, "System": "",
			"Response": "", "Think": c.Think, "IsThinkSet": c.IsThinkSet}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
