//! The texts that a model is run on.

use quince_runtime::{
    ChatRequest, Decoder, LanguageModel, Message, Moment, Sampler, SamplerOptions, SpecialTokens, Tokenizer,
};
use quince_tensor::{Error, Result, bail};
use serde_json::{Map, Value};
use std::ops::ControlFlow;

/// So many bytes for so many tokens has a passage of a language that a tokenizer was made for, at least.
const FEWEST_BYTES: (usize, usize) = (3, 2);

/// Texts as tokens, each of which the model takes at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    /// The tokens of each text.
    pub windows: Vec<Vec<u32>>,
}

impl Texts {
    /// Sentences of many kinds, one on each line, written for quince: what encoders are run on when nothing is given.
    pub const BUILT_IN: &str = include_str!("built_in.txt");

    /// Tales, articles, conversations, code and other languages, written for quince, a blank line after each passage: what
    /// decoders are run on when nothing is given.
    const PROSE: &str = include_str!("prose.txt");

    /// The passages that come with quince and that the tokenizer was made for, as [`Texts::of_text`]; none if there are none.
    ///
    /// # Errors
    /// As there.
    pub fn prose(tokenizer: &Tokenizer, length: usize, tokens: usize) -> Result<Texts> {
        let mut text = String::new();
        for passage in Texts::PROSE.split("\n\n") {
            let tokens = tokenizer.encode(passage, SpecialTokens::Omit)?.len();
            // Nearly a token for each byte: a language or notation that the model has hardly seen.
            if FEWEST_BYTES.0 * tokens <= FEWEST_BYTES.1 * passage.len() {
                text.push_str(passage);
                text.push_str("\n\n");
            }
        }
        match text.is_empty() {
            true => Ok(Texts::default()),
            false => Texts::of_text(&text, tokenizer, length, tokens),
        }
    }

    /// A long text, cut into windows of `length` tokens of which each begins with the tokenizer's begin-of-text token, if
    /// it has one; at most `tokens` in all, taken evenly from the whole text.
    ///
    /// # Errors
    /// A text without tokens, or a length that leaves no room for one.
    pub fn of_text(text: &str, tokenizer: &Tokenizer, length: usize, tokens: usize) -> Result<Texts> {
        let begin = tokenizer.begin_of_text()?;
        let fresh = length.saturating_sub(begin.iter().len());
        let all = tokenizer.encode(text, SpecialTokens::Omit)?;
        if all.is_empty() || fresh == 0 {
            bail!("found {} tokens and windows of {length}, expected some tokens and room for them", all.len());
        }
        let windows: Vec<&[u32]> = all.chunks(fresh).collect();
        let wanted = tokens.div_ceil(length).clamp(1, windows.len());
        let chosen = (0..wanted).map(|i| windows[i * windows.len() / wanted]);
        let windows = chosen.map(|window| begin.iter().chain(window).copied().collect()).collect();
        Ok(Texts { windows })
    }

    /// One text of `length` tokens of a vocabulary that stand for all of them, in no order that makes sense.
    pub fn of_vocabulary(vocabulary: usize, length: usize) -> Texts {
        // A sequence that visits every token (Weyl, with the golden ratio) stands for chance.
        let token = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16) % (vocabulary as u64).max(1);
        Texts { windows: vec![(1..=length as u64).map(|i| token(i) as u32).collect()] }
    }

    /// Texts of which each line is one, with the special tokens that a sentence has; lines that are longer than `length`
    /// tokens are cut. Of too many, those are taken that are spread evenly over all; where there are fewer than `tokens`
    /// tokens, pieces of lines are put together to further texts, as long as some sentence and as short as a word.
    ///
    /// # Errors
    /// No line with tokens.
    pub fn of_lines(text: &str, tokenizer: &Tokenizer, length: usize, tokens: usize) -> Result<Texts> {
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let encode = |line: &str| tokenizer.encode_within(line, length);
        let all: Vec<Vec<u32>> = lines.iter().map(|line| encode(line)).collect::<Result<_>>()?;
        let count: usize = all.iter().map(Vec::len).sum();
        if count == 0 {
            bail!("found no line with tokens, expected lines of text");
        }
        let mut texts = Texts { windows: spread(all, count, tokens) };
        let (mut pieces, mut count) = (Pieces::of(&lines), texts.tokens());
        while count < tokens {
            let spliced = encode(&pieces.text())?;
            // At least one, so that this ends whatever the tokenizer does.
            count += spliced.len().max(1);
            texts.windows.push(spliced);
        }
        texts.windows.retain(|text| !text.is_empty());
        Ok(texts)
    }

    /// Conversations and texts, a JSON object on each line: `messages`, and `tools` where there are some, which go through
    /// the chat template, or `text`. What is longer than `length` tokens is cut into pieces; of too many, those are taken
    /// that are spread evenly over all.
    ///
    /// # Errors
    /// A line that is neither, with its number; conversations without a chat template.
    pub fn of_json_lines(text: &str, tokenizer: &Tokenizer, length: usize, tokens: usize) -> Result<Texts> {
        let begin = tokenizer.begin_of_text()?;
        let all = entries(text).map(|(number, entry)| {
            let encoded = entry.and_then(|entry| match entry {
                Entry::Text(text) => {
                    let tokens = tokenizer.encode(&text, SpecialTokens::Omit)?;
                    Ok(begin.into_iter().chain(tokens).collect::<Vec<u32>>())
                }
                Entry::Messages { messages, tools } => {
                    let request = ChatRequest {
                        add_generation_prompt: false,
                        tools: &tools,
                        // The same day always: calibration has the same result whenever it is done.
                        ..ChatRequest::new(&messages, Moment { unix_seconds: 1_767_225_600, utc_offset_seconds: 0 })
                    };
                    Ok(tokenizer.apply_chat_template(None, &request)?.1)
                }
            });
            encoded.map_err(|e| e.at(format!("line {number}")))
        });
        let all: Vec<Vec<u32>> = all.collect::<Result<_>>()?;
        let pieces: Vec<Vec<u32>> = all.iter().flat_map(|one| one.chunks(length.max(1))).map(<[u32]>::to_vec).collect();
        let count: usize = pieces.iter().map(Vec::len).sum();
        if count == 0 {
            bail!("found no line with tokens, expected lines such as {{\"text\": \"...\"}}");
        }
        Ok(Texts { windows: spread(pieces, count, tokens) })
    }

    /// The texts of such lines, one on each line, for who takes sentences.
    ///
    /// # Errors
    /// A line without text.
    pub fn lines_of_json(text: &str) -> Result<String> {
        let line = |(number, entry): (usize, Result<Entry>)| match entry {
            Ok(Entry::Text(text)) => Ok(text.replace(['\n', '\r'], " ") + "\n"),
            Ok(Entry::Messages { .. }) => bail!("line {number}: found a conversation, expected `text`"),
            Err(error) => Err(error.at(format!("line {number}"))),
        };
        entries(text).map(line).collect()
    }

    /// Texts that the model writes itself, drawn from its own probabilities until there are `tokens` tokens; no text is
    /// longer than `length`. Each begins with `begin`, or with a token drawn at random, and ends where the model ends it.
    /// `progress` hears how many tokens there are.
    ///
    /// # Errors
    /// What the model reports.
    pub fn written_by(
        decoder: &mut Decoder,
        begin: Option<u32>,
        ends: &[u32],
        [length, tokens]: [usize; 2],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Texts> {
        let length = length.min(decoder.context());
        let vocabulary = decoder.vocab_size() as u64;
        if length < 2 || vocabulary == 0 {
            bail!("found texts of {length} tokens, expected a context of at least 2");
        }
        let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, ..SamplerOptions::default() })?;
        let (mut windows, mut count) = (Vec::new(), 0);
        while count < tokens {
            // A sequence that visits every token (Weyl, with the golden ratio) stands for chance.
            let first = (windows.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % vocabulary;
            let mut text = vec![begin.unwrap_or(first as u32)];
            decoder.truncate(0)?;
            // What is never stopped never breaks.
            let _ = decoder.prefill(&text, &mut |_| ControlFlow::Continue(()))?;
            while text.len() < length {
                let token = sampler.sample(decoder.logits(), &[], &text)?;
                text.push(token);
                if ends.contains(&token) || text.len() == length {
                    break;
                }
                decoder.decode(token)?;
                progress((count + text.len()).min(tokens));
            }
            count += text.len();
            windows.push(text);
        }
        decoder.truncate(0)?;
        Ok(Texts { windows })
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}

/// What a line of JSON holds.
enum Entry {
    Messages { messages: Vec<Message>, tools: Vec<Value> },
    Text(String),
}

/// The lines that are not empty, with their numbers.
fn entries(text: &str) -> impl Iterator<Item = (usize, Result<Entry>)> + '_ {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| (index + 1, entry(line)))
}

fn entry(line: &str) -> Result<Entry> {
    let wrong = |e: serde_json::Error| Error::new(e.to_string());
    let mut fields: Map<String, Value> = serde_json::from_str(line).map_err(wrong)?;
    match (fields.remove("messages"), fields.remove("text")) {
        (Some(messages), _) => Ok(Entry::Messages {
            messages: serde_json::from_value(messages).map_err(|e| wrong(e).at("`messages`"))?,
            tools: match fields.remove("tools") {
                None | Some(Value::Null) => Vec::new(),
                Some(tools) => serde_json::from_value(tools).map_err(|e| wrong(e).at("`tools`"))?,
            },
        }),
        (None, Some(Value::String(text))) => Ok(Entry::Text(text)),
        (None, Some(other)) => bail!("`text`: found {other}, expected a string"),
        (None, None) => bail!("found neither `messages` nor `text`, expected one of them"),
    }
}

/// Of texts in order, those that make the share of what was taken pass that of what was seen.
fn spread(texts: Vec<Vec<u32>>, count: usize, tokens: usize) -> Vec<Vec<u32>> {
    let wanted = tokens.min(count) as u128;
    let (mut seen, mut taken) = (0, 0);
    let mut chosen = Vec::new();
    for text in texts {
        seen += text.len() as u128;
        if taken * (count as u128) < seen * wanted {
            taken += text.len() as u128;
            chosen.push(text);
        }
    }
    chosen
}

/// How many pieces a spliced text has; one is as likely as another.
const PIECES: [usize; 6] = [1, 1, 2, 2, 3, 5];

/// Puts pieces of lines together.
struct Pieces<'a> {
    lines: Vec<Vec<&'a str>>,
    state: u64,
}

impl<'a> Pieces<'a> {
    fn of(lines: &[&'a str]) -> Pieces<'a> {
        Pieces { lines: lines.iter().map(|line| line.split_whitespace().collect()).collect(), state: 1 }
    }

    /// A number below `end`, which is not 0: a linear congruential sequence stands for chance (Knuth's MMIX).
    fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % end as u64) as usize
    }

    /// Words from anywhere to anywhere later in a line, several times.
    fn text(&mut self) -> String {
        let mut words: Vec<&str> = Vec::new();
        for _ in 0..PIECES[self.below(PIECES.len())] {
            let line = self.below(self.lines.len());
            let first = self.below(self.lines[line].len());
            let count = 1 + self.below(self.lines[line].len() - first);
            words.extend(&self.lines[line][first..first + count]);
        }
        words.join(" ")
    }
}
