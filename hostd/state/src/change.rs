//! What a command made different: for reconcilers, watchers and event streams.

/// One object became new, different or gone, at a revision. The wire's event is the very same thing.
pub use api::events::Event as Change;
