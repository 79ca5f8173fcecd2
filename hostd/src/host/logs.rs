//! The log: a bounded ring in memory that the API reads, filled by `tracing`.
//!
//! A line is the event's sentence, then its fields, then the fields of the spans around it. Old lines fall out;
//! `seq` counts on, so a reader sees that it missed some.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use api::system::LogLine;
use api::units::Millis;
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Longest line kept, in bytes: one runaway field must not push out everything else.
pub const LINE_LEN_MAX: usize = 4096;

/// The ring. Clones share it.
#[derive(Debug, Clone)]
pub struct Ring {
    inner: Arc<Mutex<Lines>>,
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Lines {
    lines: VecDeque<LogLine>,
    next: u64,
    capacity: usize,
}

impl Ring {
    /// Keeps the last `capacity` lines.
    pub fn new(capacity: usize) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Lines {
                lines: VecDeque::new(),
                next: 1,
                capacity: capacity.max(1),
            })),
            last: watch::Sender::new(0),
        }
    }

    /// The layer that fills it: give it to `tracing_subscriber::registry().with(…)`.
    pub fn layer(&self) -> RingLayer {
        RingLayer { ring: self.clone() }
    }

    /// Lines with a higher `seq` than `after`, oldest first, at most `max`.
    pub fn since(&self, after: u64, max: usize) -> Vec<LogLine> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let from = inner.lines.partition_point(|line| line.seq <= after);
        inner.lines.iter().skip(from).take(max).cloned().collect()
    }

    /// The newest `max` lines, oldest first.
    pub fn tail(&self, max: usize) -> Vec<LogLine> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = inner.lines.len().saturating_sub(max);
        inner.lines.iter().skip(skip).cloned().collect()
    }

    /// Fires with the newest `seq` after each line.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Adds a line.
    pub fn push(&self, level: Level, mut message: String) {
        if message.len() > LINE_LEN_MAX {
            let mut end = LINE_LEN_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        // A line is a line, and nobody's file name moves the cursor of the console.
        if message.contains(char::is_control) {
            message = message.replace(char::is_control, " ");
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = inner.next;
        inner.next += 1;
        if inner.lines.len() == inner.capacity {
            inner.lines.pop_front();
        }
        inner.lines.push_back(LogLine {
            seq,
            at: Millis::now(),
            level: level.as_str().to_ascii_lowercase(),
            message,
        });
        drop(inner);
        self.last.send_replace(seq);
    }
}

/// See [`Ring::layer`].
#[derive(Debug, Clone)]
pub struct RingLayer {
    ring: Ring,
}

/// A span's fields, rendered once.
struct SpanFields(String);

impl<S> Layer<S> for RingLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut text = Text::default();
        attributes.record(&mut text);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(text.fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut text = Text::default();
            values.record(&mut text);
            if let Some(fields) = span.extensions_mut().get_mut::<SpanFields>() {
                fields.0.push_str(&text.fields);
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut line = text.message;
        line.push_str(&text.fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<SpanFields>() {
                line.push_str(&fields.0);
            }
        }
        self.ring.push(*event.metadata().level(), line);
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => {
                let _ = write!(self.fields, " {name}={value}");
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_line_is_the_sentence_its_fields_and_its_spans() {
        let ring = Ring::new(10);
        let subscriber = tracing_subscriber::registry().with(ring.layer());
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("request", id = %"r1");
            let _entered = span.enter();
            tracing::info!(vm = "web", generation = 7, "vm started");
        });
        let lines = ring.since(0, 10);
        assert_eq!(lines[0].message, "vm started vm=web generation=7 id=r1");
        assert_eq!(lines[0].level, "info");
    }

    #[test]
    fn the_ring_is_bounded_and_seq_shows_what_was_missed() {
        let ring = Ring::new(3);
        for number in 0..10 {
            ring.push(Level::INFO, number.to_string());
        }
        let seqs: Vec<u64> = ring.since(0, 100).iter().map(|line| line.seq).collect();
        assert_eq!(seqs, [8, 9, 10]);
        assert_eq!(ring.since(9, 100).len(), 1);
        assert_eq!(ring.since(0, 2).len(), 2);
        assert_eq!(ring.tail(1)[0].message, "9");
        assert_eq!(*ring.watch().borrow(), 10);
    }

    #[test]
    fn a_line_stays_a_line() {
        let ring = Ring::new(3);
        ring.push(Level::WARN, "a\nb\u{1b}[2Jc".to_owned());
        assert_eq!(ring.tail(1)[0].message, "a b [2Jc");
    }

    #[test]
    fn a_runaway_line_is_cut_at_a_character() {
        let ring = Ring::new(3);
        ring.push(Level::WARN, "ä".repeat(LINE_LEN_MAX));
        assert!(ring.tail(1)[0].message.len() <= LINE_LEN_MAX + 4);
    }
}
