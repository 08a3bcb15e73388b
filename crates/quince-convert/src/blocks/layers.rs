//! What sets the layers of one model apart: how far they look, and how their positions turn.

use super::Windows;
use crate::rope::Rope;

/// The layers of a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Layers {
    /// How many tokens each sees.
    pub windows: Windows,
    /// The rotation in layers that see all tokens.
    pub full: Rope,
    /// The rotation in layers that see a window.
    pub sliding: Rope,
}

/// One of them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Layer<'a> {
    /// How many tokens it sees, `None` for all.
    pub window: Option<usize>,
    /// Its rotation.
    pub rope: &'a Rope,
}

impl Layers {
    /// Layers that turn alike.
    pub fn alike(windows: Windows, rope: Rope) -> Layers {
        Layers { windows, full: rope.clone(), sliding: rope }
    }

    /// A layer by its number.
    pub fn of(&self, number: usize) -> Layer<'_> {
        let window = self.windows.of_layer(number);
        Layer { window, rope: if window.is_some() { &self.sliding } else { &self.full } }
    }
}
