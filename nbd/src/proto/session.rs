//! One connection's state machine.

use super::handshake::{self, Request, Wants};
use super::limits::{HANDSHAKE_REPLY_BYTES_MAX, Limits, REQUEST_OVERHEAD_BYTES};
use super::outbox::Outbox;
use super::reply::Replies;
use super::transmission::{self, Header, Terms, Verdict};
use super::wire::{self, cmd, opt, rep};
use crate::disk::{Completion, DiskOp, DiskReply, ExportInfo, OpenError};
use bytes::{Buf, Bytes, BytesMut};
use slab::Slab;

/// What a look-up is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Only to describe the export: it must not be attached.
    Describe,
    /// To use it: the transmission phase follows.
    Open,
}

/// Why a connection is to be closed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    /// The client said goodbye.
    #[error("the client disconnected")]
    Goodbye,
    /// The disk is gone; the client shall connect again.
    #[error("the volume is not served here any more")]
    DiskGone,
    /// The export cannot be had, and EXPORT_NAME has no other way to say so.
    #[error("no such export, and the client's request for it has no error reply")]
    NoExport,
    /// The client broke the protocol or a limit; what it did.
    #[error("{0}")]
    Protocol(&'static str),
}

/// What the server must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Answer with [`Session::answer_list`].
    List,
    /// Look an export up and answer with [`Session::answer_lookup`]. Nothing else is parsed until then.
    Lookup(Lookup, String),
    /// Give this to the disk and answer with [`Session::complete`].
    Request(u64, DiskOp),
    /// Parse no more. Send what is in the outbox as requests finish; close when
    /// [`Session::is_finished`].
    Close(Close),
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    Options,
    /// A list or look-up is out for this option.
    Waiting(u32, Request),
    Transmission(Terms),
    Closing {
        in_transmission: bool,
    },
}

/// Bytes of a refused payload or option to be thrown away, and then the reply to it.
#[derive(Debug)]
struct Skip {
    left: u64,
    then: Refusal,
}

#[derive(Copy, Clone, Debug)]
enum Refusal {
    Option(u32),
    Request(Header, Verdict),
}

#[derive(Debug)]
struct Pending {
    header: Header,
    seq: u64,
}

/// Bits of a token that are the slot; the rest is a sequence number, so that a token is not used twice.
const SLOT_BITS: u32 = 16;

/// The state machine of one connection.
///
/// # Inputs
/// [`feed`](Session::feed) with what has arrived, until it returns `None`; `answer_list`,
/// `answer_lookup` and `complete` with what was asked for.
/// # Outputs
/// [`Event`]s, and bytes in [`outbox`](Session::outbox).
/// # Getters
/// [`wants_bytes`](Session::wants_bytes) (false: back-pressure, or closing; stop reading),
/// [`bytes_missing`](Session::bytes_missing), [`is_finished`](Session::is_finished).
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    phase: Phase,
    out: Outbox,
    skip: Option<Skip>,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    allocation_for: Option<String>,
    options: u32,
    pending: Slab<Pending>,
    pending_bytes: u64,
    seq: u64,
    blocked: bool,
    missing: usize,
}

impl Session {
    /// A new connection; the greeting is in the outbox.
    pub fn new(mut limits: Limits) -> Session {
        limits.requests_max = limits.requests_max.clamp(1, 1 << SLOT_BITS);
        let mut out = Outbox::default();
        handshake::greet(&mut out);
        Session {
            limits,
            phase: Phase::ClientFlags,
            out,
            skip: None,
            fixed: false,
            no_zeroes: false,
            structured: false,
            allocation_for: None,
            options: 0,
            pending: Slab::new(),
            pending_bytes: 0,
            seq: 0,
            blocked: false,
            missing: wire::CLIENT_FLAGS_BYTES,
        }
    }

    /// Bytes to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.out
    }
    /// True once an export is in use.
    pub fn in_transmission(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_) | Phase::Closing { in_transmission: true })
    }
    /// False while a limit is reached or an answer is awaited, and for ever once closing: do not read.
    pub fn wants_bytes(&self) -> bool {
        !self.blocked && matches!(self.phase, Phase::ClientFlags | Phase::Options | Phase::Transmission(_))
    }
    /// After [`Session::feed`] returned `None` and while it wants bytes: how many more it needs at
    /// least. Room for them in one piece spares a copy.
    pub fn bytes_missing(&self) -> usize {
        self.missing
    }
    /// Closing, and nothing is under way or waits to be sent.
    pub fn is_finished(&self) -> bool {
        self.is_closing() && self.pending.is_empty() && self.out.is_empty()
    }
    /// No more is parsed.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }
    /// Requests under way.
    pub fn requests_pending(&self) -> usize {
        self.pending.len()
    }
    /// The number of the last request that came. They are counted from 1.
    pub fn last_request(&self) -> u64 {
        self.seq
    }
    /// The number of the oldest request under way. Looks at all of them.
    pub fn oldest_pending(&self) -> Option<u64> {
        self.pending.iter().map(|(_, pending)| pending.seq).min()
    }
    /// Bytes of requests under way and of replies that wait to be sent.
    pub fn bytes_held(&self) -> u64 {
        self.pending_bytes + self.out.len()
    }

    /// The next event in `buf`, or `None` where it needs more bytes, an answer or room first. Takes
    /// from `buf` what it has used.
    pub fn feed(&mut self, buf: &mut BytesMut) -> Option<Event> {
        self.blocked = false;
        loop {
            if !self.skip(buf) {
                return None;
            }
            let event = match &self.phase {
                Phase::ClientFlags => self.client_flags(buf),
                Phase::Options => self.option(buf),
                Phase::Transmission(_) => self.request(buf),
                Phase::Waiting(..) | Phase::Closing { .. } => return None,
            };
            match event {
                Parsed::Event(event) => return Some(event),
                Parsed::Nothing => {}
                Parsed::Needs(bytes) => {
                    self.missing = bytes.saturating_sub(buf.len()).max(1);
                    return None;
                }
                Parsed::Blocked => {
                    self.blocked = true;
                    return None;
                }
            }
        }
    }

    fn close(&mut self, why: Close) -> Parsed {
        self.phase = Phase::Closing { in_transmission: self.in_transmission() };
        Parsed::Event(Event::Close(why))
    }

    fn protocol_error(&mut self, what: &'static str) -> Parsed {
        self.close(Close::Protocol(what))
    }

    /// Throws away what is to be thrown away. False where more must come first.
    fn skip(&mut self, buf: &mut BytesMut) -> bool {
        let Some(skip) = &mut self.skip else { return true };
        let now = skip.left.min(buf.len() as u64);
        buf.advance(now as usize);
        skip.left -= now;
        if skip.left > 0 {
            self.missing = 1;
            return false;
        }
        match skip.then {
            Refusal::Option(option) => {
                let text = "more option data than this server takes";
                handshake::reply_error(&mut self.out, option, rep::ERR_TOO_BIG, text);
            }
            Refusal::Request(header, verdict) => self.answer(&header, verdict),
        }
        self.skip = None;
        true
    }

    fn client_flags(&mut self, buf: &mut BytesMut) -> Parsed {
        let Some(flags) = buf.first_chunk::<4>() else {
            return Parsed::Needs(wire::CLIENT_FLAGS_BYTES);
        };
        let flags = u32::from_be_bytes(*flags);
        buf.advance(4);
        let known = u32::from(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        if flags & !known != 0 {
            return self.protocol_error("unknown client flags: not an NBD client, or a newer protocol");
        }
        self.fixed = flags & u32::from(wire::FLAG_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(wire::FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Options;
        Parsed::Nothing
    }

    fn option(&mut self, buf: &mut BytesMut) -> Parsed {
        if self.out.len() > HANDSHAKE_REPLY_BYTES_MAX {
            return Parsed::Blocked;
        }
        let Some(header) = buf.first_chunk::<{ wire::OPTION_HEADER_BYTES }>() else {
            return Parsed::Needs(wire::OPTION_HEADER_BYTES);
        };
        let (magic, rest) = header.split_at(8);
        let number = |at: &[u8]| at.iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
        let (option, len) = (number(&rest[..4]), number(&rest[4..]) as usize);
        if magic != wire::MAGIC_OPTION.to_be_bytes() {
            return self.protocol_error("wrong magic before an option");
        }
        if option != opt::EXPORT_NAME && !self.fixed {
            return self.protocol_error("an option from a client that did not ask for fixed newstyle");
        }
        if len > self.limits.option_bytes_max {
            if option == opt::EXPORT_NAME || len > self.limits.skipped_bytes_max as usize {
                return self.protocol_error("far too much option data");
            }
            buf.advance(wire::OPTION_HEADER_BYTES);
            self.skip = Some(Skip { left: len as u64, then: Refusal::Option(option) });
        } else if buf.len() < wire::OPTION_HEADER_BYTES + len {
            return Parsed::Needs(wire::OPTION_HEADER_BYTES + len);
        }
        self.options += 1;
        if self.options > self.limits.options_max {
            return self.protocol_error("too many options in one handshake");
        }
        if self.skip.is_some() {
            return Parsed::Nothing;
        }
        buf.advance(wire::OPTION_HEADER_BYTES);
        let request = handshake::parse(option, &buf[..len]);
        buf.advance(len);
        self.act_on(option, request)
    }

    fn act_on(&mut self, option: u32, request: Request) -> Parsed {
        let event = match &request {
            Request::ExportName(name) | Request::Go { name, .. } => Event::Lookup(Lookup::Open, name.clone()),
            Request::Info { name, .. } => Event::Lookup(Lookup::Describe, name.clone()),
            Request::ListMeta { name, .. } | Request::SetMeta { name, .. } => {
                if matches!(request, Request::SetMeta { .. }) {
                    self.allocation_for = None;
                }
                if !self.structured {
                    let text = "negotiate structured replies first";
                    handshake::reply_error(&mut self.out, option, rep::ERR_INVALID, text);
                    return Parsed::Nothing;
                }
                Event::Lookup(Lookup::Describe, name.clone())
            }
            Request::List => Event::List,
            Request::Abort => {
                handshake::reply(&mut self.out, option, rep::ACK, &[]);
                return self.close(Close::Goodbye);
            }
            Request::StructuredReply => {
                self.structured = true;
                handshake::reply(&mut self.out, option, rep::ACK, &[]);
                return Parsed::Nothing;
            }
            Request::StartTls => {
                let text = "TLS is not configured on this server";
                handshake::reply_error(&mut self.out, option, rep::ERR_POLICY, text);
                return Parsed::Nothing;
            }
            Request::Unknown => {
                let text = "this server does not know the option";
                handshake::reply_error(&mut self.out, option, rep::ERR_UNSUP, text);
                return Parsed::Nothing;
            }
            Request::Invalid(_) if option == opt::EXPORT_NAME => return self.close(Close::NoExport),
            Request::Invalid(why) => {
                if option == opt::SET_META_CONTEXT {
                    self.allocation_for = None;
                }
                handshake::reply_error(&mut self.out, option, rep::ERR_INVALID, why);
                return Parsed::Nothing;
            }
        };
        self.phase = Phase::Waiting(option, request);
        Parsed::Event(event)
    }

    /// The answer to [`Event::List`].
    pub fn answer_list(&mut self, names: &[String]) {
        if let Phase::Waiting(_, Request::List) = self.phase {
            handshake::reply_list(&mut self.out, names);
            self.phase = Phase::Options;
        }
    }

    /// The answer to [`Event::Lookup`]. A reason to close follows where the client cannot be told.
    pub fn answer_lookup(&mut self, result: Result<ExportInfo, OpenError>) -> Option<Close> {
        let Phase::Waiting(option, request) = std::mem::replace(&mut self.phase, Phase::Options) else {
            debug_assert!(false, "an answer that nothing asked for");
            self.phase = Phase::Closing { in_transmission: false };
            return Some(Close::Protocol("internal error: an answer that nothing asked for"));
        };
        let export = match result {
            Ok(export) => export,
            Err(_) if option == opt::EXPORT_NAME => {
                self.phase = Phase::Closing { in_transmission: false };
                return Some(Close::NoExport);
            }
            Err(error) => {
                handshake::reply_open_error(&mut self.out, option, &error);
                return None;
            }
        };
        let allocation = |name: &str| self.allocation_for.as_deref() == Some(name);
        match request {
            Request::ExportName(name) => {
                let allocation = allocation(&name);
                handshake::reply_export_name(&mut self.out, &export, self.structured, self.no_zeroes);
                self.start(export, allocation);
            }
            Request::Go { name, wants } => {
                let allocation = allocation(&name);
                self.info(option, &export, wants);
                self.start(export, allocation);
            }
            Request::Info { wants, .. } => self.info(option, &export, wants),
            Request::ListMeta { matches, .. } => {
                handshake::reply_meta(&mut self.out, option, 0, matches);
            }
            Request::SetMeta { name, matches } => {
                self.allocation_for = matches.then_some(name);
                let id = wire::CONTEXT_ALLOCATION_ID;
                handshake::reply_meta(&mut self.out, option, id, matches);
            }
            _ => {}
        }
        None
    }

    fn info(&mut self, option: u32, export: &ExportInfo, wants: Wants) {
        handshake::reply_info(&mut self.out, option, export, wants, self.structured, &self.limits);
    }

    fn start(&mut self, export: ExportInfo, allocation: bool) {
        let structured = self.structured;
        self.phase = Phase::Transmission(Terms { export, structured, allocation });
    }

    fn request(&mut self, buf: &mut BytesMut) -> Parsed {
        let Phase::Transmission(terms) = &self.phase else { return Parsed::Nothing };
        let Some(bytes) = buf.first_chunk::<{ wire::REQUEST_HEADER_BYTES }>() else {
            return Parsed::Needs(wire::REQUEST_HEADER_BYTES);
        };
        let Some(header) = Header::parse(bytes) else {
            return self.protocol_error("wrong magic before a request");
        };
        if header.command == cmd::DISC {
            return self.close(Close::Goodbye);
        }
        if !self.has_room(header.weight_bytes()) {
            return Parsed::Blocked;
        }
        let verdict = transmission::check(&header, terms, &self.limits);
        let payload = header.payload_bytes();
        if verdict != Verdict::Serve {
            if payload > self.limits.skipped_bytes_max {
                return self.protocol_error("a write far larger than any server takes");
            }
            buf.advance(wire::REQUEST_HEADER_BYTES);
            let then = Refusal::Request(header, verdict);
            self.skip = Some(Skip { left: u64::from(payload), then });
            return Parsed::Nothing;
        }
        let whole = wire::REQUEST_HEADER_BYTES + payload as usize;
        if buf.len() < whole {
            return Parsed::Needs(whole);
        }
        buf.advance(wire::REQUEST_HEADER_BYTES);
        let data = match payload {
            0 => Bytes::new(),
            n => buf.split_to(n as usize).freeze(),
        };
        self.seq += 1;
        let slot = self.pending.insert(Pending { header, seq: self.seq });
        self.pending_bytes += header.weight_bytes() + REQUEST_OVERHEAD_BYTES;
        let token = self.seq << SLOT_BITS | slot as u64;
        Parsed::Event(Event::Request(token, transmission::operation(&header, data)))
    }

    fn has_room(&self, weight_bytes: u64) -> bool {
        let held = self.bytes_held();
        let more = weight_bytes.min(u64::from(self.limits.payload_bytes_max)) + REQUEST_OVERHEAD_BYTES;
        self.pending.len() < self.limits.requests_max && (held == 0 || held + more <= self.limits.bytes_max)
    }

    fn answer(&mut self, header: &Header, verdict: Verdict) {
        let mut replies = Replies { out: &mut self.out, structured: self.structured };
        match verdict {
            Verdict::Refuse(error, why) => replies.error(header, error, why),
            Verdict::Empty | Verdict::Serve => replies.done(header),
        }
    }

    /// The answer to [`Event::Request`]. An answer to a request that is not under way is ignored. A
    /// reason to close follows where the disk is gone.
    pub fn complete(&mut self, (token, result): Completion) -> Option<Close> {
        let slot = (token & ((1 << SLOT_BITS) - 1)) as usize;
        if self.pending.get(slot).is_none_or(|p| p.seq != token >> SLOT_BITS) {
            debug_assert!(false, "an answer to nothing");
            return None;
        }
        let header = self.pending.remove(slot).header;
        self.pending_bytes -= header.weight_bytes() + REQUEST_OVERHEAD_BYTES;
        let mut replies = Replies { out: &mut self.out, structured: self.structured };
        let expects = header.command;
        match result {
            Ok(DiskReply::Data(chunks)) if expects == cmd::READ => replies.data(&header, chunks),
            Ok(DiskReply::Extents(extents)) if expects == cmd::BLOCK_STATUS => {
                replies.extents(&header, &extents, self.limits.extents_max);
            }
            Ok(DiskReply::Done) if expects != cmd::READ && expects != cmd::BLOCK_STATUS => {
                replies.done(&header);
            }
            Ok(_) => replies.error(&header, wire::errno::EIO, "internal error: a wrong kind of reply"),
            Err(error) => {
                if !replies.disk_error(&header, error) {
                    self.close(Close::DiskGone);
                    return Some(Close::DiskGone);
                }
            }
        }
        None
    }
}

enum Parsed {
    Event(Event),
    /// Something was used; go on.
    Nothing,
    /// The buffer must hold this many bytes.
    Needs(usize),
    /// A limit is reached.
    Blocked,
}
