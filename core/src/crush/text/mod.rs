//! Ceph's text format of CRUSH maps, as `crushtool -d` prints it and `crushtool -c` reads it.
//!
//! [`CrushMap::parse`](super::CrushMap::parse) and [`CrushMap::to_text`](super::CrushMap::to_text)
//! are inverses: what is written is read back as the same map. The text may come from anywhere;
//! parsing is bounded, never panics and says where and what is wrong.

mod lexer;
mod parse;
mod resolve;
mod rules;
mod write;

pub use lexer::{ParseError, Problem};
