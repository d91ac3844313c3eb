//! A connection of the floor: the frames that come in and the bytes that go out, without any I/O.
//!
//! Small payloads stay in the stream's buffer, next to their header, and are handed on from there without a
//! copy. A large one is received into aligned memory of its own, so that it can go to the device as it is.
//! [`super::engine`] does the I/O on [`Conn::room`] and [`Conn::out`].

use super::{HEADER, Header, PAYLOAD_MAX, nonsense};
use crate::device::buffer::{Buf, Pool};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

/// Bytes that the stream's buffer gets at once.
const CHUNK: usize = 256 << 10;
/// With less room than this there is a new one.
const ROOM_MIN: usize = 16 << 10;
/// Payloads beyond it get memory of their own.
const SMALL_MAX: usize = 64 << 10;
/// Received at once behind a large frame, so that little of the next one's payload has to be copied.
const HEAD_ROOM: usize = 4096;
/// Pieces that are sent at once.
pub const PIECES_MAX: usize = 64;

/// A request or an answer.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// The header's bytes, and behind them the payload unless it is `large`.
    pub bytes: Bytes,
    /// A large payload.
    pub large: Option<Bytes>,
}

impl Frame {
    /// The payload.
    pub fn payload(&self) -> Bytes {
        match &self.large {
            Some(large) => large.clone(),
            None => self.bytes.slice(HEADER.min(self.bytes.len())..),
        }
    }
}

struct Large {
    header: Header,
    head: Bytes,
    buf: Buf,
    filled: usize,
}

/// See the module.
pub struct Conn {
    /// The socket.
    pub socket: OwnedFd,
    /// What is to be sent.
    pub out: VecDeque<Bytes>,
    input: BytesMut,
    large: Option<Large>,
    was_large: bool,
}

impl Conn {
    /// A connected stream socket.
    pub fn new(socket: OwnedFd) -> Conn {
        Conn { socket, out: VecDeque::new(), input: BytesMut::new(), large: None, was_large: false }
    }

    /// Where the next bytes go, and whether all of it is certain to be filled by what the peer sends now. The
    /// memory stays where it is until [`Conn::received`], [`Conn::next`] or `room` is called.
    pub fn room(&mut self) -> (*mut u8, usize, bool) {
        if let Some(large) = &mut self.large {
            let rest = &mut large.buf[large.filled..];
            return (rest.as_mut_ptr(), rest.len(), true);
        }
        if self.input.capacity() - self.input.len() < ROOM_MIN {
            self.input.reserve(CHUNK);
        }
        let spare = self.input.chunk_mut();
        let len = if self.was_large { HEAD_ROOM.min(spare.len()) } else { spare.len() };
        (spare.as_mut_ptr(), len, false)
    }

    /// `n` bytes have been written to [`Conn::room`].
    ///
    /// # Safety
    ///
    /// They have, and `n` is at most its length.
    #[allow(unsafe_code)]
    pub unsafe fn received(&mut self, n: usize) {
        match &mut self.large {
            Some(large) => large.filled += n,
            // SAFETY: the caller's word.
            None => unsafe { self.input.advance_mut(n) },
        }
    }

    /// The next whole frame of what has been received.
    ///
    /// # Errors
    ///
    /// It claims to be larger than any, or there is no memory for it.
    pub fn next(&mut self, pool: &Pool) -> io::Result<Option<Frame>> {
        if self.large.is_none() {
            let Some(header) = Header::of(&self.input) else {
                return Ok(None);
            };
            let len = header.len as usize;
            if len > PAYLOAD_MAX {
                return Err(nonsense("a frame is too large"));
            }
            self.was_large = len > SMALL_MAX;
            if !self.was_large {
                let whole = self.input.len() >= HEADER + len;
                return Ok(whole.then(|| {
                    let bytes = self.input.split_to(HEADER + len).freeze();
                    Frame { header, bytes, large: None }
                }));
            }
            let head = self.input.split_to(HEADER).freeze();
            let mut buf = pool.get(len).ok_or(io::ErrorKind::OutOfMemory)?;
            let filled = len.min(self.input.len());
            buf[..filled].copy_from_slice(&self.input[..filled]);
            self.input.advance(filled);
            self.large = Some(Large { header, head, buf, filled });
        }
        let whole = self.large.take_if(|large| large.filled == large.buf.len());
        Ok(whole.map(|Large { header, head, buf, .. }| Frame {
            header,
            bytes: head,
            large: Some(buf.freeze()),
        }))
    }

    /// Takes `n` bytes, which have been sent, off [`Conn::out`].
    pub fn sent(&mut self, mut n: usize) {
        while let Some(first) = self.out.front_mut() {
            if n < first.len() {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.out.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::floor::kind;
    use std::fs::File;
    use zerocopy::IntoBytes;

    fn conn() -> Conn {
        Conn::new(File::open("/dev/null").expect("opens").into())
    }

    #[allow(unsafe_code)]
    fn receive(conn: &mut Conn, bytes: &[u8]) -> usize {
        let (at, len, _) = conn.room();
        let n = len.min(bytes.len());
        // SAFETY: `n` is at most the length of the room, which is ours until `received`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, n);
            conn.received(n);
        }
        n
    }

    fn frame(id: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { kind: kind::WRITE, id, len: payload.len() as u32, ..Header::default() };
        [header.as_bytes(), payload].concat()
    }

    #[test]
    fn frames_come_out_as_they_went_in_wherever_they_are_cut() {
        let large: Vec<u8> = (0..SMALL_MAX + 1).map(|n| (n % 251) as u8).collect();
        let payloads = [&large[..100], &large[..], &large[..0], &large[..SMALL_MAX], &large[1..]];
        let stream: Vec<u8> = (0..5).flat_map(|n| frame(n, payloads[n as usize])).collect();
        for step in [1, 95, 97, 5000, stream.len()] {
            let pool = Pool::new(u64::MAX, 0, None);
            let (mut conn, mut at, mut seen) = (conn(), 0, 0);
            while at < stream.len() {
                at += receive(&mut conn, &stream[at..stream.len().min(at + step)]);
                while let Some(frame) = conn.next(&pool).expect("frames") {
                    assert_eq!(frame.header.id, seen);
                    assert_eq!(frame.payload(), payloads[seen as usize], "{step}");
                    seen += 1;
                }
            }
            assert_eq!(seen, 5, "{step}");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused() {
        let mut conn = conn();
        let header = Header { len: PAYLOAD_MAX as u32 + 1, ..Header::default() };
        receive(&mut conn, header.as_bytes());
        let pool = Pool::new(u64::MAX, 0, None);
        assert_eq!(conn.next(&pool).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_was_sent_is_taken_off_piece_by_piece() {
        let mut conn = conn();
        conn.out.extend([Bytes::from_static(b"abc"), Bytes::from_static(b"de"), Bytes::from_static(b"f")]);
        conn.sent(4);
        assert_eq!(conn.out, [&b"e"[..], b"f"]);
        conn.sent(2);
        assert!(conn.out.is_empty());
    }
}
