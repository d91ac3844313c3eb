//! The codec against scripts, arbitrary bytes and arbitrary chunking.

use super::wire::{cflag, chunk, cmd, errno, opt, rep};
use super::*;
use crate::disk::{Chunk, DiskError, DiskOp, DiskReply, ExportInfo, Extent, OpenError};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

/// A server that answers at once: the bytes that it would send, and what it was asked.
struct Fake {
    session: Session,
    buf: BytesMut,
    sent: Vec<u8>,
    seen: Vec<String>,
    /// Requests that are answered later.
    held: Vec<(u64, DiskOp)>,
    hold: bool,
    read_only: bool,
}

impl Fake {
    fn new(limits: Limits) -> Fake {
        let (session, buf) = (Session::new(limits), BytesMut::new());
        let (sent, seen, held) = (vec![], vec![], vec![]);
        Fake { session, buf, sent, seen, held, hold: false, read_only: false }
    }
    fn lookup(&self, name: &str) -> Result<ExportInfo, OpenError> {
        let info = ExportInfo {
            name: "disk0".into(),
            description: "é".repeat(4000),
            size_bytes: SIZE,
            read_only: self.read_only,
        };
        if name == "disk0" { Ok(info) } else { Err(OpenError::Unknown("no ".repeat(4000))) }
    }
    fn answer(&mut self, token: u64, op: DiskOp) {
        let reply = match op {
            DiskOp::Read { offset: 666, .. } => Err(DiskError::Io),
            DiskOp::Read { len, .. } => {
                let mut chunks = crate::disk::Chunks::from(Chunk::Hole(len / 2));
                chunks.push(Chunk::Data(vec![7; (len - len / 2) as usize].into()));
                Ok(DiskReply::Data(chunks))
            }
            DiskOp::Status { len, .. } => Ok(DiskReply::Extents(
                (0..len).map(|at| Extent { len: 1, hole: at % 2 == 0 }).take(1000).collect(),
            )),
            DiskOp::Flush => Err(DiskError::Gone),
            _ => Ok(DiskReply::Done),
        };
        if let Some(close) = self.session.complete((token, reply)) {
            self.seen.push(format!("{close:?}"));
        }
    }
    fn feed(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        loop {
            while let Some(event) = self.session.feed(&mut self.buf) {
                self.seen.push(format!("{event:?}"));
                match event {
                    Event::List => self.session.answer_list(&["disk0".into(), "b".into()]),
                    Event::Lookup(_, name) => {
                        let found = self.lookup(&name);
                        if let Some(close) = self.session.answer_lookup(found) {
                            self.seen.push(format!("{close:?}"));
                        }
                    }
                    Event::Request(token, op) if self.hold => self.held.push((token, op)),
                    Event::Request(token, op) => self.answer(token, op),
                    Event::Close(_) => {}
                }
            }
            let more = self.session.outbox().take();
            self.sent.extend_from_slice(&more);
            // Room has been made: what was blocked goes on.
            if more.is_empty() {
                return;
            }
        }
    }
    /// What was sent since the last call.
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = wire::MAGIC_OPTION.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut out = wire::MAGIC_REQUEST.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    if command == cmd::WRITE {
        out.extend(vec![cookie as u8; len.min(1 << 20) as usize]);
    }
    out
}

fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn go(name: &str) -> Vec<u8> {
    let mut data = string(name);
    data.extend([0, 2, 0, 3, 0, 2]);
    option(opt::GO, &data)
}

fn set_meta(name: &str, query: &str) -> Vec<u8> {
    option(opt::SET_META_CONTEXT, &[string(name), vec![0, 0, 0, 1], string(query)].concat())
}

const FLAGS: [u8; 4] = [0, 0, 0, 3];

fn connected(structured: bool) -> Fake {
    let mut fake = Fake::new(Limits::default());
    fake.feed(&FLAGS);
    if structured {
        fake.feed(&option(opt::STRUCTURED_REPLY, &[]));
        fake.feed(&set_meta("disk0", wire::CONTEXT_ALLOCATION));
    }
    fake.feed(&go("disk0"));
    assert!(fake.session.in_transmission(), "{:?}", fake.seen);
    fake.take();
    fake
}

/// The types of the replies to options in `bytes`, each with its data.
fn option_replies(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], wire::MAGIC_OPTION_REPLY.to_be_bytes());
        let kind = u32::from_be_bytes(bytes[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize;
        out.push((kind, bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    out
}

/// (type, flags, payload) of the chunks of a structured reply.
fn chunks(mut bytes: &[u8]) -> Vec<(u16, u16, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..4], wire::MAGIC_STRUCTURED_REPLY.to_be_bytes());
        let word = |at: usize| u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap());
        let len = u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize;
        out.push((word(6), word(4), bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    out
}

fn simple_error(bytes: &[u8]) -> u32 {
    assert_eq!((bytes.len(), &bytes[..4]), (16, &wire::MAGIC_SIMPLE_REPLY.to_be_bytes()[..]));
    u32::from_be_bytes(bytes[4..8].try_into().unwrap())
}

fn chunk_error(bytes: &[u8]) -> u32 {
    let chunks = chunks(bytes);
    assert_eq!((chunks.len(), chunks[0].0, chunks[0].1), (1, chunk::ERROR, chunk::FLAG_DONE));
    u32::from_be_bytes(chunks[0].2[..4].try_into().unwrap())
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let mut fake = Fake::new(Limits::default());
    fake.feed(&[0, 0, 0, 7]);
    assert!(fake.seen[0].contains("Close"), "{:?}", fake.seen);
    assert!(!fake.session.wants_bytes());
}

#[test]
fn options_are_answered_and_haggling_goes_on() {
    let mut fake = Fake::new(Limits::default());
    fake.feed(&FLAGS);
    fake.take();
    let mut ask = |bytes: Vec<u8>| {
        fake.feed(&bytes);
        option_replies(&fake.take())
    };
    let kinds = |replies: Vec<(u32, Vec<u8>)>| replies.iter().map(|r| r.0).collect::<Vec<_>>();
    assert_eq!(kinds(ask(option(99, b"anything"))), [rep::ERR_UNSUP]);
    assert_eq!(kinds(ask(option(11, b""))), [rep::ERR_UNSUP]);
    assert_eq!(kinds(ask(option(opt::STARTTLS, b""))), [rep::ERR_POLICY]);
    assert_eq!(kinds(ask(option(opt::LIST, b"x"))), [rep::ERR_INVALID]);
    assert_eq!(kinds(ask(option(opt::LIST, b""))), [rep::SERVER, rep::SERVER, rep::ACK]);
    assert_eq!(kinds(ask(set_meta("disk0", "base:allocation"))), [rep::ERR_INVALID]);
    assert_eq!(kinds(ask(option(opt::STRUCTURED_REPLY, b""))), [rep::ACK]);
    assert_eq!(kinds(ask(set_meta("disk0", "base:"))), [rep::ACK]);
    assert_eq!(kinds(ask(set_meta("disk0", "base:allocation"))), [rep::META_CONTEXT, rep::ACK]);
    assert_eq!(kinds(ask(option(opt::GO, &[0, 0, 0, 9, b'x', 0, 0]))), [rep::ERR_INVALID]);
    assert_eq!(kinds(ask(option(opt::GO, &vec![0; 100_000]))), [rep::ERR_TOO_BIG]);
    let unknown = ask(go("nope"));
    assert_eq!(unknown[0].0, rep::ERR_UNKNOWN);
    assert!(unknown[0].1.len() < 4096, "nbd-client does not swallow more");
    let info = ask(go("disk0"));
    assert_eq!(kinds(info.clone()), [rep::INFO, rep::INFO, rep::INFO, rep::ACK]);
    assert!(info.iter().all(|(_, data)| data.len() <= 4096));
    assert!(fake.session.in_transmission());
}

#[test]
fn a_bad_export_name_has_no_reply_and_ends_the_connection() {
    let mut fake = Fake::new(Limits::default());
    fake.feed(&FLAGS);
    fake.take();
    fake.feed(&option(opt::EXPORT_NAME, b"nope"));
    assert!(fake.seen.last().unwrap().contains("NoExport"));
    assert!(fake.take().is_empty() && fake.session.is_finished());
}

#[test]
fn export_name_sends_zeroes_unless_told_not_to() {
    for (flags, len) in [(1, 10 + 124), (3, 10)] {
        let mut fake = Fake::new(Limits::default());
        fake.feed(&[0, 0, 0, flags]);
        fake.take();
        fake.feed(&option(opt::EXPORT_NAME, b"disk0"));
        assert_eq!(fake.take().len(), len);
        assert!(fake.session.in_transmission());
    }
}

#[test]
fn a_context_selected_for_another_export_does_not_count() {
    let mut fake = Fake::new(Limits::default());
    fake.feed(&[&FLAGS[..], &option(opt::STRUCTURED_REPLY, &[])].concat());
    fake.feed(&set_meta("disk0", wire::CONTEXT_ALLOCATION));
    fake.feed(&set_meta("nope", wire::CONTEXT_ALLOCATION));
    fake.feed(&go("disk0"));
    fake.take();
    fake.feed(&request(0, cmd::BLOCK_STATUS, 1, 0, 4096));
    assert_eq!(chunk_error(&fake.take()), errno::EINVAL);
}

#[test]
fn reads_are_structured_once_negotiated_and_never_before() {
    let mut plain = connected(false);
    plain.feed(&request(0, cmd::READ, 5, 0, 100));
    let sent = plain.take();
    assert_eq!((simple_error(&sent[..16]), sent.len()), (0, 116));
    assert_eq!((sent[65], sent[66]), (0, 7));
    plain.feed(&request(0, cmd::READ, 5, 666, 100));
    assert_eq!(simple_error(&plain.take()), errno::EIO);

    let mut fake = connected(true);
    fake.feed(&request(0, cmd::READ, 5, 0, 100));
    let replies = chunks(&fake.take());
    assert_eq!(replies.iter().map(|c| (c.0, c.1)).collect::<Vec<_>>(), [(2, 0), (1, 1)]);
    assert_eq!(replies[1].2.len(), 8 + 50);
    fake.feed(&request(cflag::DF, cmd::READ, 5, 0, 100));
    let replies = chunks(&fake.take());
    assert_eq!((replies.len(), replies[0].0, replies[0].2.len()), (1, 1, 108));
    fake.feed(&request(0, cmd::READ, 5, 666, 100));
    assert_eq!(chunk_error(&fake.take()), errno::EIO);
    fake.feed(&request(0, cmd::READ, 5, 1, 0));
    assert_eq!(chunks(&fake.take()), [(chunk::NONE, chunk::FLAG_DONE, vec![])]);
}

#[test]
fn every_refusal_has_the_number_that_the_specification_asks_for() {
    let mut fake = connected(true);
    let most = 33 << 20;
    for (bytes, expected) in [
        (request(0, cmd::READ, 1, SIZE, 1), errno::EINVAL),
        (request(0, cmd::READ, 1, u64::MAX, 2), errno::EINVAL),
        (request(0, cmd::READ, 1, 0, most), errno::EOVERFLOW),
        (request(0, cmd::WRITE, 1, SIZE - 1, 2), errno::ENOSPC),
        (request(0, cmd::WRITE_ZEROES, 1, SIZE - 1, 2), errno::ENOSPC),
        (request(0, cmd::TRIM, 1, SIZE - 1, 2), errno::EINVAL),
        (request(0, cmd::CACHE, 1, SIZE - 1, 2), errno::EINVAL),
        (request(0, cmd::BLOCK_STATUS, 1, SIZE - 1, 2), errno::EINVAL),
        (request(0, cmd::BLOCK_STATUS, 1, 0, 0), errno::EINVAL),
        (request(0, cmd::FLUSH, 1, 0, 1), errno::EINVAL),
        (request(0, 77, 1, 0, 0), errno::EINVAL),
        (request(cflag::DF, cmd::WRITE, 1, 0, 8), errno::EINVAL),
        (request(cflag::NO_HOLE, cmd::TRIM, 1, 0, 8), errno::EINVAL),
        (request(1 << 9, cmd::READ, 1, 0, 8), errno::EINVAL),
        (request(cflag::NO_HOLE | cflag::FAST_ZERO, cmd::WRITE_ZEROES, 1, 0, 8), errno::ENOTSUP),
    ] {
        fake.feed(&bytes);
        assert_eq!(chunk_error(&fake.take()), expected, "{:?}", &bytes[..28]);
    }
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE] {
        fake.feed(&request(cflag::FUA, command, 1, 3, 8));
        assert_eq!(simple_error(&fake.take()), 0);
    }
    let mut fake = Fake { read_only: true, ..Fake::new(Limits::default()) };
    fake.feed(&[&FLAGS[..], &go("disk0")].concat());
    fake.take();
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        fake.feed(&request(0, command, 1, 0, 8));
        assert_eq!(simple_error(&fake.take()), errno::EPERM);
    }
}

#[test]
fn a_write_that_is_too_large_is_read_away_and_refused_and_a_mad_one_ends_the_connection() {
    let mut fake = connected(false);
    fake.feed(&request(0, cmd::WRITE, 1, 0, 33 << 20));
    for _ in 0..32 {
        assert!(fake.take().is_empty());
        fake.feed(&vec![0; 1 << 20]);
    }
    assert_eq!(simple_error(&fake.take()), errno::EINVAL);
    fake.feed(&request(0, cmd::READ, 1, 0, 4));
    assert_eq!(fake.take().len(), 20);
    fake.feed(&request(0, cmd::WRITE, 1, 0, u32::MAX));
    assert!(fake.seen.last().unwrap().contains("Close"));
}

#[test]
fn status_is_cut_to_one_extent_or_to_the_limit() {
    let mut fake = connected(true);
    fake.feed(&request(cflag::REQ_ONE, cmd::BLOCK_STATUS, 1, 0, 900));
    assert_eq!(chunks(&fake.take())[0].2, [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 3]);
    fake.feed(&request(0, cmd::BLOCK_STATUS, 1, 0, 900));
    assert_eq!(chunks(&fake.take())[0].2.len(), 4 + 8 * 900);
}

#[test]
fn a_disk_that_is_gone_closes_the_connection_without_an_answer() {
    let mut fake = connected(true);
    fake.feed(&request(0, cmd::FLUSH, 1, 0, 0));
    assert!(fake.seen.last().unwrap().contains("DiskGone"));
    assert!(fake.take().is_empty());
}

#[test]
fn at_its_limits_it_takes_no_more_until_there_is_room() {
    let limits = Limits { requests_max: 4, ..Limits::default() };
    let mut fake = Fake { hold: true, ..Fake::new(limits.clone()) };
    fake.feed(&[&FLAGS[..], &go("disk0")].concat());
    for cookie in 0..10 {
        fake.feed(&request(0, cmd::READ, cookie, 0, 8));
    }
    assert_eq!((fake.held.len(), fake.session.wants_bytes()), (4, false));
    let (token, op) = fake.held.remove(0);
    fake.answer(token, op);
    fake.feed(&[]);
    assert_eq!((fake.held.len(), fake.session.wants_bytes()), (4, false));

    let limits = Limits { bytes_max: 1 << 20, ..Limits::default() };
    let mut fake = Fake { hold: true, ..Fake::new(limits) };
    fake.feed(&[&FLAGS[..], &go("disk0")].concat());
    for cookie in 0..10 {
        fake.feed(&request(0, cmd::WRITE, cookie, 0, 400 << 10));
    }
    assert_eq!((fake.held.len(), fake.session.wants_bytes()), (2, false));
    assert!(fake.session.bytes_held() <= 1 << 20);
}

#[test]
fn too_many_options_end_the_connection() {
    let mut fake = Fake::new(Limits::default());
    fake.feed(&FLAGS);
    (0..300).for_each(|_| fake.feed(&option(99, b"")));
    assert!(fake.seen.last().unwrap().contains("too many options"), "{:?}", fake.seen);
}

#[test]
fn payloads_are_slices_of_the_receive_buffer() {
    let mut fake = Fake { hold: true, ..connected(false) };
    fake.buf.reserve(1 << 16);
    fake.buf.extend_from_slice(&request(0, cmd::WRITE, 9, 4096, 4096));
    let at = fake.buf[28..].as_ptr();
    fake.feed(&[]);
    let (_, DiskOp::Write { data, .. }) = &fake.held[0] else { panic!("a write expected") };
    assert_eq!((data.as_ptr(), data.len()), (at, 4096));
    assert_eq!(data, &Bytes::from(vec![9; 4096]));
}

fn script() -> impl Strategy<Value = Vec<u8>> {
    let requests = (0..9u16, 0..32u16, any::<u64>(), 0..SIZE + 5000, 0..9000u32).prop_map(
        |(command, flags, cookie, offset, len)| match command {
            // Flush and goodbye end the script; keep them rare.
            cmd::DISC | cmd::FLUSH if cookie % 8 > 0 => request(0, cmd::READ, cookie, offset, len),
            _ => request(if cookie % 3 > 0 { 0 } else { flags }, command, cookie, offset, len),
        },
    );
    let options = prop_oneof![
        Just(option(opt::STRUCTURED_REPLY, &[])),
        Just(option(opt::LIST, &[])),
        Just(set_meta("disk0", wire::CONTEXT_ALLOCATION)),
        Just(go("nope")),
        (0..13u32, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_filter("no early end", |(o, _)| *o != opt::ABORT && *o != opt::EXPORT_NAME)
            .prop_map(|(o, data)| option(o, &data)),
    ];
    (proptest::collection::vec(options, 0..6), proptest::collection::vec(requests, 0..20)).prop_map(
        |(options, requests)| [vec![FLAGS.to_vec()], options, vec![go("disk0")], requests].concat().concat(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn chunking_changes_nothing(script in script(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let mut whole = Fake::new(Limits::default());
        whole.feed(&script);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(script.len() + 1)).collect();
        cuts.push(script.len());
        cuts.sort_unstable();
        let mut parts = Fake::new(Limits::default());
        let mut at = 0;
        for cut in cuts {
            parts.feed(&script[at..cut]);
            at = cut;
        }
        prop_assert_eq!(&whole.seen, &parts.seen);
        prop_assert!(whole.sent == parts.sent, "different replies");
        prop_assert_eq!(whole.session.requests_pending(), 0);
    }

    #[test]
    fn damaged_scripts_do_no_harm(mut script in script(), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12)) {
        for (at, byte) in damage {
            let at = at.index(script.len());
            script[at] = byte;
        }
        let mut fake = Fake { hold: true, ..Fake::new(Limits::default()) };
        for part in script.chunks(1000) {
            fake.feed(part);
            prop_assert!(fake.session.bytes_held() <= Limits::default().bytes_max);
            prop_assert!(fake.session.bytes_missing() <= (32 << 20) + 28);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut fake = connected(true);
        fake.feed(&bytes);
        let mut fake = Fake::new(Limits::default());
        fake.feed(&[&FLAGS[..], &bytes].concat());
    }
}
