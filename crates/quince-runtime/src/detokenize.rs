//! Text from tokens as they come.

use quince_tensor::Result;

use crate::tokenizer::{SpecialTokens, Tokenizer};

/// Decodes one token at a time.
///
/// The pieces that [`TextStream::push`] and [`TextStream::finish`] return, one after another, are exactly the text
/// that [`Tokenizer::decode`] gives for all tokens at once, and no piece holds part of a character.
///
/// A token's text can depend on its neighbours: a character may be spread over several tokens, the first word of a
/// SentencePiece text loses its space, a run of `<0xNN>` tokens is UTF-8 as a whole or not at all. So each piece is the
/// difference between two texts that begin at the same token: that of the tokens already told, from the last piece on,
/// and that of those and the new ones. What may still change is held back.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    special: SpecialTokens,
    /// The tokens of the last piece and those held back.
    window: Vec<u32>,
    /// How many tokens of the window have been told.
    told: usize,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, special: SpecialTokens) -> TextStream<'a> {
        TextStream { tokenizer, special, window: Vec::new(), told: 0 }
    }

    /// The text that this token completes, if any.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        if self.tokenizer.is_silent(token, self.special) {
            return Ok(None);
        }
        self.window.push(token);
        if self.tokenizer.is_byte(token) {
            return Ok(None);
        }
        let piece = self.untold()?;
        if piece.is_empty() || piece.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        self.window.drain(..self.told);
        self.told = self.window.len();
        Ok(Some(piece))
    }

    /// What is still held back, at the end of the text: an unfinished character shows as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<Option<String>> {
        let piece = self.untold()?;
        self.window.clear();
        self.told = 0;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    fn untold(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.window[..self.told], self.special)?;
        let mut text = self.tokenizer.decode(&self.window, self.special)?;
        let same = before.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=same).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        Ok(text.split_off(start))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{sentence_piece, tiny_llama};
    use crate::tokenizer::{SpecialTokens, Tokenizer};

    fn streamed(tokenizer: &Tokenizer, ids: &[u32], special: SpecialTokens) -> Vec<String> {
        let mut stream = tokenizer.stream(special);
        let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        pieces.extend(stream.finish().unwrap());
        pieces
    }

    /// Any tokens in any order, most of them nonsense: broken characters, runs of bytes, special tokens in between.
    #[test]
    fn pieces_make_the_text_of_all_tokens_at_once() {
        for tokenizer in [tiny_llama(), sentence_piece()] {
            let size = tokenizer.vocab_size() as u64;
            let mut state = 1u64;
            for case in 0..400u64 {
                let ids: Vec<u32> = (0..case % 40)
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        // Low ids are special tokens and bytes, and one id in sixteen is beyond the vocabulary.
                        let range = [270, size, size + size / 16][(state >> 60) as usize % 3];
                        ((state >> 33) % range) as u32
                    })
                    .collect();
                for special in [SpecialTokens::Omit, SpecialTokens::Include] {
                    let whole = tokenizer.decode(&ids, special).unwrap();
                    assert_eq!(streamed(tokenizer, &ids, special).concat(), whole, "{ids:?}");
                }
            }
        }
    }

    #[test]
    fn characters_come_whole_and_soon() {
        let text = "a 🦙 é\u{301} 日本 end";
        for tokenizer in [tiny_llama(), sentence_piece()] {
            let ids = tokenizer.encode(text, SpecialTokens::Omit).unwrap();
            let pieces = streamed(tokenizer, &ids, SpecialTokens::Omit);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
            assert!(pieces.len() > 5, "{pieces:?}");
        }
    }

    #[test]
    fn an_unfinished_character_shows_only_at_the_end() {
        let tokenizer = tiny_llama();
        let ids = tokenizer.encode("🦙", SpecialTokens::Omit).unwrap();
        let mut stream = tokenizer.stream(SpecialTokens::Omit);
        for &id in &ids[..ids.len() - 1] {
            assert_eq!(stream.push(id).unwrap(), None);
        }
        assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
        assert_eq!(stream.finish().unwrap(), None);
    }
}
