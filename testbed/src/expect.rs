//! Waiting for conditions. Nothing in the testbed sleeps and hopes.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinSet;

/// Seconds, for readable tests. Generous ones cost nothing: a wait ends when its condition holds.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Asks until the answer is there. An error is an answer too ("not yet"), and is told when time is up.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + within;
    loop {
        let answer = ask().await;
        if let Ok(Some(value)) = answer {
            return Ok(value);
        }
        if Instant::now() > until {
            let last = match answer {
                Err(error) => format!("{error:#}"),
                Ok(_) => "not yet".to_owned(),
            };
            bail!("{what}: not within {} s; last: {last}", within.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Asks like [`eventually`], but anew every quarter of a second, whatever became of the questions before: QEMU's user network
/// takes a connection long before the appliance listens, and passes it on again only after seconds.
pub async fn answered<T, F>(what: &str, within: Duration, ask: impl Fn() -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<Option<T>>> + Send + 'static,
{
    let until = tokio::time::Instant::now() + within;
    let mut next = tokio::time::interval(Duration::from_millis(250));
    let mut asked = JoinSet::new();
    let mut last = "not yet".to_owned();
    loop {
        tokio::select! {
            _ = next.tick() => {
                asked.spawn(ask());
            }
            Some(answer) = asked.join_next() => match answer? {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => "not yet".clone_into(&mut last),
                Err(error) => last = format!("{error:#}"),
            },
            () = tokio::time::sleep_until(until) => {
                bail!("{what}: not within {} s; last: {last}", within.as_secs());
            }
        }
    }
}

/// The error a call must have had, with its code.
pub fn refused<T: Debug>(
    result: Result<T, api::client::ClientError>,
    code: api::ErrorCode,
) -> Result<api::ApiError> {
    match result {
        Err(api::client::ClientError::Refused { error, .. }) if error.code == code => Ok(error),
        other => bail!("expected a refusal with {code:?}, got {other:?}"),
    }
}
