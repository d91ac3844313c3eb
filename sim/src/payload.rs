//! The stand-in for bytes: one number per block, which names the write that put it there.
//!
//! A value is given out once per (write, block) and never again in a run, so that a block that shows a
//! value tells which write it is from. 0 is a hole and never given out. The checksum of a block is a
//! bijection of its value: a record's checksums and data can be held against each other, and a table
//! of checksums is as good as the data.

use std::rc::Rc;

/// The name of one block of one write; 0 is a hole.
pub type Value = u64;

/// The contents of some blocks, in order. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// No block.
    #[default]
    None,
    /// One block: the commonest, and no allocation.
    One(Value),
    /// Several.
    Many(Rc<[Value]>),
}

impl Blocks {
    /// These blocks.
    pub fn new(values: &[Value]) -> Blocks {
        match values {
            [] => Blocks::None,
            [one] => Blocks::One(*one),
            many => Blocks::Many(many.into()),
        }
    }
    /// The values.
    pub fn values(&self) -> &[Value] {
        match self {
            Blocks::None => &[],
            Blocks::One(one) => std::slice::from_ref(one),
            Blocks::Many(many) => many,
        }
    }
}

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const INVERSE: u64 = inverse(FACTOR);

/// The inverse of an odd number modulo 2^64, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut round = 0;
    while round < 6 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x
}

/// The checksum of a block with this value: 0 for a hole and for nothing else.
#[inline]
pub const fn checksum(value: Value) -> u64 {
    value.wrapping_mul(FACTOR)
}

/// The value that has this checksum.
#[inline]
pub const fn value(checksum: u64) -> Value {
    checksum.wrapping_mul(INVERSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_names_its_value() {
        for v in [0, 1, 2, 77, u64::MAX] {
            assert_eq!(value(checksum(v)), v);
        }
        assert_eq!(checksum(0), trefoil_core::checksum::HOLE);
        assert_ne!(checksum(1), 1);
        assert_eq!(Blocks::new(&[4, 5]).values(), &[4, 5]);
        assert_eq!(Blocks::new(&[4]).values(), &[4]);
    }
}
