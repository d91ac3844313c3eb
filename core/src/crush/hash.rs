//! rjenkins1, the hash behind every CRUSH decision and behind the mapping of names to placement
//! groups.
//!
//! Algorithm: Robert Jenkins' 96-bit mix (1996, public domain) in the arrangement that CRUSH
//! gives it. The functions are pure; each result is pinned by the reference vectors. Nothing
//! here may change: a different result moves data.

/// The seed that CRUSH mixes into every hash of integers.
const SEED: u32 = 1_315_423_911;
/// Padding words for argument counts that do not fill the mix.
const PAD_X: u32 = 231_232;
const PAD_Y: u32 = 1_232;
/// The golden ratio, with which Jenkins' string hash starts.
const GOLDEN: u32 = 0x9e37_79b9;

/// Jenkins' mix of three words: each bit of the input reaches each of the output.
#[inline(always)]
fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 13);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 8);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 13);
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 12);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 16);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 5);
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 3);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 10);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 15);
}

/// `crush_hash32`: the hash of one word.
#[inline]
pub fn crush_hash32(a: u32) -> u32 {
    let (mut a, mut b) = (a, a);
    let (mut x, mut y) = (PAD_X, PAD_Y);
    let mut hash = SEED ^ a;
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    hash
}

/// `crush_hash32_2`: the hash of two words.
#[inline]
pub fn crush_hash32_2(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    let (mut x, mut y) = (PAD_X, PAD_Y);
    let mut hash = SEED ^ a ^ b;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut x, &mut a, &mut hash);
    mix(&mut b, &mut y, &mut hash);
    hash
}

/// `crush_hash32_3`: the hash of three words.
#[inline]
pub fn crush_hash32_3(a: u32, b: u32, c: u32) -> u32 {
    let (mut a, mut b, mut c) = (a, b, c);
    let (mut x, mut y) = (PAD_X, PAD_Y);
    let mut hash = SEED ^ a ^ b ^ c;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    hash
}

/// `crush_hash32_4`: the hash of four words.
#[inline]
pub fn crush_hash32_4(a: u32, b: u32, c: u32, d: u32) -> u32 {
    let (mut a, mut b, mut c, mut d) = (a, b, c, d);
    let (mut x, mut y) = (PAD_X, PAD_Y);
    let mut hash = SEED ^ a ^ b ^ c ^ d;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut a, &mut x, &mut hash);
    mix(&mut y, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut d, &mut hash);
    hash
}

/// `crush_hash32_5`: the hash of five words.
#[inline]
pub fn crush_hash32_5(a: u32, b: u32, c: u32, d: u32, e: u32) -> u32 {
    let (mut a, mut b, mut c, mut d, mut e) = (a, b, c, d, e);
    let (mut x, mut y) = (PAD_X, PAD_Y);
    let mut hash = SEED ^ a ^ b ^ c ^ d ^ e;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut e, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    mix(&mut d, &mut x, &mut hash);
    mix(&mut y, &mut e, &mut hash);
    hash
}

/// `ceph_str_hash_rjenkins`: the hash of an object's name (any bytes; only the low 32 bits of
/// the length count, as in Ceph).
pub fn ceph_str_hash_rjenkins(name: &[u8]) -> u32 {
    let word = |bytes: &[u8]| -> u32 {
        let whole = bytes.iter().rev();
        whole.fold(0, |word, &byte| (word << 8) | u32::from(byte))
    };
    let (mut a, mut b, mut c) = (GOLDEN, GOLDEN, 0u32);
    let mut blocks = name.chunks_exact(12);
    for block in &mut blocks {
        a = a.wrapping_add(word(&block[0..4]));
        b = b.wrapping_add(word(&block[4..8]));
        c = c.wrapping_add(word(&block[8..12]));
        mix(&mut a, &mut b, &mut c);
    }
    // The lowest byte of `c` is the length's; so the tail's third word begins one byte higher.
    let tail = blocks.remainder();
    let (first, rest) = tail.split_at(tail.len().min(4));
    let (second, third) = rest.split_at(rest.len().min(4));
    a = a.wrapping_add(word(first));
    b = b.wrapping_add(word(second));
    c = c.wrapping_add(name.len() as u32).wrapping_add(word(third) << 8);
    mix(&mut a, &mut b, &mut c);
    c
}
