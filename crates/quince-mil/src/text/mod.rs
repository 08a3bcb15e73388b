//! MIL text, printed and parsed.
