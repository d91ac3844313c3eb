//! What is written to the log (the program's, not the store's) while a test runs.
//!
//! The collector is the whole process's, and writes down what comes from a thread that asks for it. One that
//! was set for its own thread only would miss lines while other tests run: where a place in the code is first
//! reached by a thread without a collector, `tracing` takes that thread's word for it that nobody listens.

use std::cell::RefCell;
use std::fmt::{Debug, Write};
use std::rc::Rc;
use std::sync::Once;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    static LINES: RefCell<Option<Rc<RefCell<Vec<String>>>>> = const { RefCell::new(None) };
}

static SET: Once = Once::new();

struct Collector;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl Subscriber for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        LINES.with_borrow(|lines| {
            if let Some(lines) = lines {
                lines.borrow_mut().push(line.0);
            }
        });
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Runs `f` and gives the lines that it wrote on this thread: `LEVEL field="value" ... message="text"`.
pub fn lines_of<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Rc::new(RefCell::new(Vec::new()));
    SET.call_once(|| tracing::subscriber::set_global_default(Collector).expect("the only one"));
    LINES.set(Some(lines.clone()));
    let result = f();
    LINES.set(None);
    (result, lines.take())
}
