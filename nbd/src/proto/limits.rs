//! The bounds of one connection. Each says what happens when it is reached.

/// Bounds of one connection; [`Limits::default`] is what a server should use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Data of one option, in bytes. A longer option is read away and answered "too big" up to
    /// [`Limits::skipped_bytes_max`]; beyond that the connection is closed.
    pub option_bytes_max: usize,
    /// Options in one handshake; then the connection is closed.
    pub options_max: u32,
    /// Payload of one read or write, in bytes. A longer read is refused; a longer write is read away
    /// and refused up to [`Limits::skipped_bytes_max`], beyond that the connection is closed.
    pub payload_bytes_max: u32,
    /// Bytes that are read and thrown away for one refused write or option.
    pub skipped_bytes_max: u32,
    /// Requests under way. At the limit no more is parsed or read: the client feels back-pressure.
    pub requests_max: usize,
    /// Bytes of requests under way and of replies that wait to be sent. At the limit as above. One
    /// request is always let in, so that any payload can be served.
    pub bytes_max: u64,
    /// Extents in one answer to a block status; the answer is cut short there, which the protocol
    /// allows.
    pub extents_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            option_bytes_max: 64 << 10,
            options_max: 256,
            payload_bytes_max: 32 << 20,
            skipped_bytes_max: 64 << 20,
            requests_max: 256,
            bytes_max: 64 << 20,
            extents_max: 64 << 10,
        }
    }
}

/// Bytes of replies to options that may wait to be sent before no further option is looked at.
pub(super) const HANDSHAKE_REPLY_BYTES_MAX: u64 = 1 << 20;

/// What a request weighs besides its payload, so that many small ones count for something.
pub(super) const REQUEST_OVERHEAD_BYTES: u64 = 128;

/// Zeros that a hole is sent as where the client cannot be told of holes: a static buffer, no copy.
pub(super) const ZEROS_BYTES: usize = 256 << 10;
