//! Chat templates: the Jinja programs that turn a conversation into the prompt a model was trained on.
//!
//! Rendering equals `apply_chat_template` of transformers 5; the environment that this takes is in `jinja.rs`.

use minijinja::Environment;
use minijinja::value::Value;
use quince_tensor::{Error, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::python::Moment;
use crate::{jinja, jinja_source};

/// One message of a conversation: `role`, mostly `content`, and whatever else the template knows (`tool_calls`,
/// `name`, `reasoning_content`, ...), in the order given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, serde_json::Value>")]
pub struct Message(Map<String, serde_json::Value>);

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        let fields = [("role", role.into()), ("content", content.into())];
        Message(fields.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect())
    }

    /// Who speaks: `system`, `user`, `assistant`, `tool`, ...
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(|role| role.as_str()).unwrap_or_default()
    }

    /// All fields, in the order given.
    pub fn fields(&self) -> &Map<String, serde_json::Value> {
        &self.0
    }

    /// The fields that templates see. As transformers has it, fields that are null are not there (many templates would
    /// write `None`), and reasoning is found under the names that templates know for it.
    fn for_template(&self) -> Map<String, serde_json::Value> {
        let given = || self.0.iter().filter(|(_, value)| !value.is_null());
        let reasoning = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(|name| {
            let value = self.0.get(name)?;
            (!value.is_null()).then(|| value.clone())
        });
        let mut fields = Map::new();
        fields.extend(reasoning.iter().map(|value| ("thinking".to_owned(), value.clone())));
        fields.extend(given().map(|(name, value)| (name.clone(), value.clone())));
        fields.extend(reasoning.map(|value| ("reasoning_content".to_owned(), value)));
        fields
    }
}

impl TryFrom<Map<String, serde_json::Value>> for Message {
    type Error = Error;

    fn try_from(fields: Map<String, serde_json::Value>) -> Result<Message> {
        match fields.get("role") {
            Some(serde_json::Value::String(_)) => Ok(Message(fields)),
            Some(other) => bail!("role of a message: found {other}, expected a string"),
            None => {
                bail!("message: found no `role`"; hint: "give each message a role, such as \"user\", and a content")
            }
        }
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone)]
pub struct ChatRequest<'a> {
    /// The conversation, oldest first.
    pub messages: &'a [Message],
    /// Function descriptions (JSON schema) that the model may call; the template sees `none` when there are none.
    pub tools: &'a [serde_json::Value],
    /// Whether the prompt ends with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`; they win over the tokenizer's special tokens.
    pub variables: Map<String, serde_json::Value>,
    /// What `strftime_now` tells.
    pub now: Moment,
}

impl<'a> ChatRequest<'a> {
    /// The prompt for the next answer to `messages`.
    pub fn new(messages: &'a [Message], now: Moment) -> ChatRequest<'a> {
        ChatRequest { messages, tools: &[], add_generation_prompt: true, variables: Map::new(), now }
    }
}

/// The compiled templates of a model: mostly one, named `default`; some have others, such as `tool_use`.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    special_tokens: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Compiles named templates. `special_tokens` (`bos_token`, `eos_token`, ...) become variables of each.
    ///
    /// # Errors
    /// No template, or one that is not Jinja: the message has its name and line.
    pub fn new(sources: &[(String, String)], special_tokens: Map<String, serde_json::Value>) -> Result<ChatTemplate> {
        if sources.is_empty() {
            bail!("chat template: found an empty list, expected at least one template");
        }
        let mut environment = jinja::environment()?;
        for (name, source) in sources {
            environment
                .add_template_owned(name.clone(), jinja_source::for_minijinja(source))
                .map_err(|error| explain(name, &error))?;
        }
        Ok(ChatTemplate { environment, names: sources.iter().map(|(name, _)| name.clone()).collect(), special_tokens })
    }

    /// The names, in the order given.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The prompt text. Without a `name`, the template is `tool_use` when there are tools and it exists, else
    /// `default`, as in transformers.
    ///
    /// # Errors
    /// An unknown name; what the template refuses by `raise_exception`; what it does wrong.
    pub fn render(&self, name: Option<&str>, request: &ChatRequest) -> Result<String> {
        let name = self.choose(name, request)?;
        let template = self.environment.get_template(name).map_err(|error| explain(name, &error))?;
        template.render(self.variables(request)).map_err(|error| explain(name, &error))
    }

    fn choose<'s>(&'s self, asked: Option<&str>, request: &ChatRequest) -> Result<&'s str> {
        let find = |wanted: &str| self.names.iter().find(|name| *name == wanted).map(String::as_str);
        let found = match asked {
            Some(name) => find(name),
            None if !request.tools.is_empty() => find("tool_use").or_else(|| find("default")),
            None => find("default"),
        };
        found.ok_or_else(|| {
            let wanted = asked.unwrap_or("default");
            Error::new(format!("chat template: found {}, expected `{wanted}`", self.names.join(", ")))
                .hint("choose one of those by name")
        })
    }

    fn variables(&self, request: &ChatRequest) -> Value {
        let now = request.now;
        let mut variables: Vec<(String, Value)> = Vec::new();
        for (name, value) in self.special_tokens.iter().chain(&request.variables) {
            variables.push((name.clone(), jinja::from_json(value)));
        }
        let tools = match request.tools {
            [] => Value::from(()),
            tools => tools.iter().map(jinja::from_json).collect(),
        };
        let messages: Value = request.messages.iter().map(|message| jinja::dict(&message.for_template())).collect();
        let own = [
            ("messages", messages),
            ("tools", tools),
            ("add_generation_prompt", Value::from(request.add_generation_prompt)),
            ("strftime_now", Value::from_function(move |format: &str| now.strftime(format))),
        ];
        variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        if !request.variables.contains_key("documents") {
            variables.push(("documents".to_owned(), Value::from(())));
        }
        Value::from_pairs(variables)
    }
}

fn explain(name: &str, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" line {line}")).unwrap_or_default();
    let kind = error.kind();
    let detail = error.detail().map_or_else(|| kind.to_string(), str::to_owned);
    Error::new(detail).at(format!("chat template `{name}`{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NEW_YEAR: Moment = Moment { unix_seconds: 1_735_689_599, utc_offset_seconds: 0 };

    fn conversation() -> Vec<Message> {
        let messages = json!([
            {"role": "system", "content": "Be nice."},
            {"role": "user", "content": "Hello, <b> & 'x'!"},
            {"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": {"city": "Köln", "days": 2.0}}]},
        ]);
        serde_json::from_value(messages).unwrap()
    }

    fn render(source: &str) -> Result<String> {
        let special = json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().unwrap().clone();
        let template = ChatTemplate::new(&[("default".to_owned(), source.to_owned())], special)?;
        template.render(None, &ChatRequest::new(&conversation(), NEW_YEAR))
    }

    /// Expected texts: what Jinja2 3.1.6 prints with transformers' environment for the same template and messages.
    #[test]
    fn templates_print_what_jinja2_prints() {
        let cases = [
            (
                "{{ bos_token }}{% for m in messages %}\n  {% if m.content %}\n[{{ m.role }}]\n  {% endif %}\n{% endfor %}\nend\n",
                "<s>[system]\n[user]\nend",
            ),
            (
                "{% set ns = namespace(n=0, seen=false) %}{% for m in messages[::-1] %}{% if not loop.first %}{% set ns.n = ns.n + m.content|length %}{% set ns.seen = true %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.seen }}",
                "25 True",
            ),
            (
                "{% macro turn(role, text='-') %}<{{ role }}>{{ text }}{% endmacro %}{{ turn('a') }}{{ turn(text=messages[1].content, role='b') }}",
                "<a>-<b>Hello, <b> & 'x'!",
            ),
            (
                "{{ messages[2].tool_calls | tojson }}",
                "[{\"name\": \"f\", \"arguments\": {\"city\": \"Köln\", \"days\": 2.0}}]",
            ),
            (
                "{{ messages[2] }}",
                "{'role': 'assistant', 'tool_calls': [{'name': 'f', 'arguments': {'city': 'Köln', 'days': 2.0}}]}",
            ),
            ("{{ messages | selectattr('content') | map(attribute='role') | join(', ') }}", "system, user"),
            (
                "{{ messages[0].content.split(' ', maxsplit=1)[-1].removesuffix('.') }}|{{ 'a-b'.partition('-') }}|{{ 'a.b.c'.rsplit('.', 1) }}",
                "nice|('a', '-', 'b')|['a.b', 'c']",
            ),
            (
                "{{ messages[0]['nope'] }}|{{ nope is defined }}|{{ nope|length }}|{{ messages[0].get('nope') }}|{{ tools }}",
                "|False|0|None|None",
            ),
            (
                "{{ {} is sequence }}{{ 'a' is iterable }}{{ messages[0] is mapping }}{{ messages[0].content is string }}",
                "TrueTrueTrueTrue",
            ),
            (
                "{{ 1e-5 }} {{ 2.0 }} {{ 1 / 2 }} {{ 7 // 2 }} {{ true }} {{ none }} {{ [1, 'a'] }}",
                "1e-05 2.0 0.5 3 True None [1, 'a']",
            ),
            (
                "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "023",
            ),
            ("{%- generation -%}\n x {%- set q = 1 %}\n{% endgeneration %}\n[{{ q }}]", "x[]"),
            ("{{ strftime_now('%d %b %Y') }}{% if add_generation_prompt %} go{% endif %}", "31 Dec 2024 go"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap_or_else(|error| error.to_string()), expected, "{source}");
        }
    }

    /// Expected texts: as above.
    #[test]
    fn values_and_filters_are_those_of_python() {
        let cases = [
            // A list in a text prints as a list does; what cannot be printed is escaped in it.
            (
                "{{ ['a\u{200b}', \"it's\", '\u{e9}\u{2028}'] }}|{{ 'x' ~ messages[2].tool_calls }}|{{ [1e-7, 1e16] | string }}",
                "['a\\u200b', \"it's\", 'é\\u2028']|x[{'name': 'f', 'arguments': {'city': 'Köln', 'days': 2.0}}]|[1e-07, 1e+16]",
            ),
            ("{{ '{\n' | indent(2, first=true) }}|{{ 'a\n\nb' | indent('> ') }}|", "  {\n|a\n\n> b|"),
            (
                "{{ 'a  b c'.split(none, 1) }}{{ 'a  b c'.rsplit(none, 1) }}{{ 'a\x0bb\r\nc'.splitlines() }}",
                "['a', 'b c']['a  b', 'c']['a', 'b', 'c']",
            ),
            (
                "{{ '12 ' | int }} {{ 'x' | int(7) }} {{ '0x1F' | int(base=16) }} {{ '2.7' | int }} {{ none | float }} {{ 'aaa' | replace('a', 'b', 2) }}",
                "12 7 31 2 0.0 bba",
            ),
            ("{{ ''[::-1] }}{{ 'ab'[::-1] }}{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}", "baaus"),
            // Python finds the method of the map before its key.
            (
                "{% set s = {'items': {'type': 'x'}} %}{{ s.items.type }}|{{ s['items'].type }}|{{ s.items is defined }}",
                "|x|True",
            ),
            ("{{ '<'|safe + '>' + \"'<\" + '&'|safe }}", "<&gt;&#39;&lt;&"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap_or_else(|error| error.to_string()), expected, "{source}");
        }
    }

    #[test]
    fn variables_of_the_request_reach_the_template() {
        let template = ChatTemplate::new(
            &[("default".to_owned(), "{{ enable_thinking }} {{ bos_token }} {{ tools[0].name }}".to_owned())],
            json!({"bos_token": "<s>"}).as_object().unwrap().clone(),
        );
        let (messages, tools) = (conversation(), [json!({"name": "f"})]);
        let mut request = ChatRequest::new(&messages, NEW_YEAR);
        request.tools = &tools;
        request.variables = json!({"enable_thinking": false, "bos_token": "<x>"}).as_object().unwrap().clone();
        assert_eq!(template.unwrap().render(None, &request).unwrap(), "False <x> f");
    }

    /// Witness: transformers 5 does the same with messages before the template sees them.
    #[test]
    fn null_fields_are_not_there_and_reasoning_has_every_name() {
        let seen = |message: serde_json::Value| {
            let message: Message = serde_json::from_value(message).unwrap();
            serde_json::Value::Object(message.for_template()).to_string()
        };
        assert_eq!(seen(json!({"role": "user", "content": null, "name": "x"})), r#"{"role":"user","name":"x"}"#);
        assert_eq!(
            seen(json!({"role": "assistant", "reasoning": "r", "thinking": null})),
            r#"{"thinking":"r","role":"assistant","reasoning":"r","reasoning_content":"r"}"#
        );
        assert_eq!(
            seen(json!({"role": "assistant", "reasoning_content": "a", "thinking": "b"})),
            r#"{"thinking":"b","role":"assistant","reasoning_content":"a"}"#
        );
    }

    #[test]
    fn refusals_and_mistakes_name_the_line() {
        let refused = render("\n{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert_eq!(
            refused,
            "chat template `default` line 2: the template refuses this conversation: roles must alternate"
        );
        assert!(render("{{ messages[0].nope.more }}").unwrap_err().to_string().contains("line 1"));
        assert!(render("{{ nope | tojson }}").unwrap_err().to_string().contains("not JSON serializable"));
        let cycle = "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns | tojson }}";
        assert!(render(cycle).unwrap_err().to_string().contains("nested deeper"));
        let roleless: Result<Vec<Message>, _> = serde_json::from_value(json!([{"content": "Hi"}]));
        assert!(roleless.unwrap_err().to_string().contains("found no `role`"));
    }
}
