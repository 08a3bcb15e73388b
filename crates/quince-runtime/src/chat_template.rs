//! Chat templates: the Jinja programs that turn a conversation into the prompt a model was trained on.
//!
//! Rendering equals `apply_chat_template` of transformers; the environment that this takes is in `jinja.rs`. One thing
//! is not imitated: text marked `safe` does not escape what is added to it.

use minijinja::Environment;
use minijinja::value::{Serde, Value};
use quince_tensor::{Error, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::jinja;
use crate::python::Moment;

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
                .add_template_owned(name.clone(), plain_generation_tags(source))
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
            variables.push((name.clone(), Value::from(Serde(value))));
        }
        let tools = if request.tools.is_empty() { Value::from(()) } else { Value::from(Serde(request.tools)) };
        let own = [
            ("messages", Value::from(Serde(request.messages))),
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

/// Writes `generation` tags, which mark what the assistant said for training and print nothing themselves, as
/// `with` blocks: those have the same scope and the same handling of white space.
fn plain_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            word @ ("generation" | "endgeneration") => {
                let plain = if word == "generation" { "with" } else { "endwith" };
                out.push_str(&format!("{{%{}%}}", inside.replacen(word, plain, 1)));
            }
            _ => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
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
                "{'role': 'assistant', 'content': None, 'tool_calls': [{'name': 'f', 'arguments': {'city': 'Köln', 'days': 2.0}}]}",
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
