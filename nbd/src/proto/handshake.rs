//! Options of the handshake: parsing their data, and the replies to them.
//!
//! Pure functions over bytes; the order of things is kept by [`super::Session`].

use super::limits::Limits;
use super::outbox::Outbox;
use super::wire::{self, info, opt, rep, tflag};
use crate::disk::{EXPORTS_LISTED_MAX, ExportInfo, OpenError};

/// What a client asks for in INFO and GO besides the export itself.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub name: bool,
    pub description: bool,
    pub block_size: bool,
}

/// A parsed option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    ExportName(String),
    Abort,
    List,
    StartTls,
    Info {
        name: String,
        wants: Wants,
    },
    Go {
        name: String,
        wants: Wants,
    },
    StructuredReply,
    /// `matches`: a query that names or, for a list, covers `base:allocation`.
    ListMeta {
        name: String,
        matches: bool,
    },
    SetMeta {
        name: String,
        matches: bool,
    },
    Unknown,
    /// The data is malformed; why.
    Invalid(&'static str),
}

/// Reads from a slice; `None` at its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }
    /// A length and that many bytes, at most the protocol's limit for strings.
    fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        text(self.take(len)?)
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    let valid = bytes.len() <= wire::STRING_BYTES_MAX && !bytes.contains(&0);
    std::str::from_utf8(bytes).ok().filter(|_| valid)
}

/// Parses the data of an option. Never fails: what is malformed or unknown is a request of its own.
pub(super) fn parse(option: u32, data: &[u8]) -> Request {
    const BAD_NAME: &str = "the export name is not UTF-8, has a zero byte or more than 4096 bytes";
    let without_data = |request| {
        if data.is_empty() { request } else { Request::Invalid("this option takes no data") }
    };
    match option {
        opt::EXPORT_NAME => match text(data) {
            Some(name) => Request::ExportName(name.to_owned()),
            None => Request::Invalid(BAD_NAME),
        },
        opt::ABORT => Request::Abort,
        opt::LIST => without_data(Request::List),
        opt::STARTTLS => without_data(Request::StartTls),
        opt::STRUCTURED_REPLY => without_data(Request::StructuredReply),
        opt::INFO | opt::GO => match info_request(data) {
            Some((name, wants)) if option == opt::GO => Request::Go { name, wants },
            Some((name, wants)) => Request::Info { name, wants },
            None => Request::Invalid("malformed export name or list of information requests"),
        },
        opt::LIST_META_CONTEXT => match meta_request(data, true) {
            Some((name, matches)) => Request::ListMeta { name, matches },
            None => Request::Invalid("malformed export name or metadata query"),
        },
        opt::SET_META_CONTEXT => match meta_request(data, false) {
            Some((name, matches)) => Request::SetMeta { name, matches },
            None => Request::Invalid("malformed export name or metadata query"),
        },
        _ => Request::Unknown,
    }
}

fn info_request(data: &[u8]) -> Option<(String, Wants)> {
    let mut r = Reader(data);
    let name = r.string()?.to_owned();
    let mut wants = Wants::default();
    for _ in 0..r.u16()? {
        match r.u16()? {
            info::NAME => wants.name = true,
            info::DESCRIPTION => wants.description = true,
            info::BLOCK_SIZE => wants.block_size = true,
            _ => {}
        }
    }
    r.0.is_empty().then_some((name, wants))
}

/// The export's name, and whether a query selects `base:allocation`. For a list, no query at all and
/// the bare namespace select it too.
fn meta_request(data: &[u8], list: bool) -> Option<(String, bool)> {
    let mut r = Reader(data);
    let name = r.string()?.to_owned();
    let queries = r.u32()?;
    let mut matches = list && queries == 0;
    for _ in 0..queries {
        let query = r.string()?;
        matches |= query == wire::CONTEXT_ALLOCATION || (list && query == "base:");
    }
    r.0.is_empty().then_some((name, matches))
}

/// The flags of an export on a connection with or without structured replies.
pub(super) fn transmission_flags(info: &ExportInfo, structured: bool) -> u16 {
    let mut flags = tflag::HAS_FLAGS
        | tflag::SEND_FLUSH
        | tflag::SEND_FUA
        | tflag::SEND_TRIM
        | tflag::SEND_WRITE_ZEROES
        | tflag::CAN_MULTI_CONN
        | tflag::SEND_CACHE
        | tflag::SEND_FAST_ZERO;
    if structured {
        flags |= tflag::SEND_DF;
    }
    if info.read_only {
        flags |= tflag::READ_ONLY;
    }
    flags
}

/// The greeting that opens every connection.
pub(super) fn greet(out: &mut Outbox) {
    out.header(&wire::MAGIC_GREETING.to_be_bytes());
    out.header(&wire::MAGIC_OPTION.to_be_bytes());
    out.header(&(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).to_be_bytes());
}

/// One reply to an option; `parts` are its data.
pub(super) fn reply(out: &mut Outbox, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.header(&wire::MAGIC_OPTION_REPLY.to_be_bytes());
    out.header(&option.to_be_bytes());
    out.header(&kind.to_be_bytes());
    out.header(&(len as u32).to_be_bytes());
    parts.iter().for_each(|part| out.header(part));
}

/// An error reply. nbd-client does not swallow replies of 4096 bytes or more, hence the cut.
pub(super) fn reply_error(out: &mut Outbox, option: u32, kind: u32, message: &str) {
    reply(out, option, kind, &[cut(message, wire::STRING_BYTES_MAX / 2).as_bytes()]);
}

/// The longest prefix of whole characters with at most `max` bytes.
pub(super) fn cut(message: &str, max: usize) -> &str {
    let mut end = max.min(message.len());
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// The error reply for an export that cannot be had.
pub(super) fn reply_open_error(out: &mut Outbox, option: u32, error: &OpenError) {
    let kind = match error {
        OpenError::Unknown(_) => rep::ERR_UNKNOWN,
        OpenError::Refused(_) => rep::ERR_POLICY,
        OpenError::ShuttingDown => rep::ERR_SHUTDOWN,
    };
    reply_error(out, option, kind, &error.to_string());
}

/// The list of exports. Names that the protocol cannot carry are left out.
pub(super) fn reply_list(out: &mut Outbox, names: &[String]) {
    let fits = |name: &&String| name.len() <= wire::STRING_BYTES_MAX;
    for name in names.iter().filter(fits).take(EXPORTS_LISTED_MAX) {
        let len = (name.len() as u32).to_be_bytes();
        reply(out, opt::LIST, rep::SERVER, &[&len, name.as_bytes()]);
    }
    reply(out, opt::LIST, rep::ACK, &[]);
}

/// The information of INFO and GO, with the final acknowledgement.
pub(super) fn reply_info(
    out: &mut Outbox,
    option: u32,
    export: &ExportInfo,
    wants: Wants,
    structured: bool,
    limits: &Limits,
) {
    let size = export.size_bytes.to_be_bytes();
    let flags = transmission_flags(export, structured).to_be_bytes();
    reply(out, option, rep::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
    if wants.name && export.name.len() <= wire::STRING_BYTES_MAX {
        reply(out, option, rep::INFO, &[&info::NAME.to_be_bytes(), export.name.as_bytes()]);
    }
    if wants.description {
        let description = cut(&export.description, wire::STRING_BYTES_MAX / 2);
        reply(out, option, rep::INFO, &[&info::DESCRIPTION.to_be_bytes(), description.as_bytes()]);
    }
    if wants.block_size {
        let (min, preferred) = (1u32.to_be_bytes(), 4096u32.to_be_bytes());
        let max = limits.payload_bytes_max.to_be_bytes();
        reply(out, option, rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), &min, &preferred, &max]);
    }
    reply(out, option, rep::ACK, &[]);
}

/// The answer to EXPORT_NAME, which has no header.
pub(super) fn reply_export_name(out: &mut Outbox, export: &ExportInfo, structured: bool, no_zeroes: bool) {
    out.header(&export.size_bytes.to_be_bytes());
    out.header(&transmission_flags(export, structured).to_be_bytes());
    if !no_zeroes {
        out.header(&[0; 124]);
    }
}

/// The metadata contexts that matched, with the final acknowledgement.
pub(super) fn reply_meta(out: &mut Outbox, option: u32, id: u32, matches: bool) {
    if matches {
        let name = wire::CONTEXT_ALLOCATION.as_bytes();
        reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), name]);
    }
    reply(out, option, rep::ACK, &[]);
}
