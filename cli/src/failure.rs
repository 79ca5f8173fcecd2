//! Why a command did not succeed, and which exit status that is.

use std::error::Error;
use std::fmt;

use api::client::ClientError;

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The appliance, or what we asked of it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was given cannot be used.
    #[error("{0}")]
    Usage(String),
    /// This machine: files, the terminal.
    #[error("{what}")]
    Here {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// What was waited for did not come.
    #[error("{0}")]
    Timeout(String),
    /// What was waited for cannot come any more.
    #[error("{0}")]
    Ended(String),
}

impl Failure {
    /// The exit status.
    pub(crate) fn status(&self) -> i32 {
        match self {
            Self::Client(ClientError::Refused { .. } | ClientError::TaskFailed(_)) => 1,
            Self::Client(ClientError::Timeout(_)) | Self::Timeout(_) => 4,
            Self::Client(
                ClientError::Connect { .. }
                | ClientError::Fingerprint { .. }
                | ClientError::Broken(_),
            ) => 3,
            Self::Client(ClientError::Invalid(_)) | Self::Usage(_) => 2,
            Self::Client(ClientError::Protocol(_)) | Self::Here { .. } | Self::Ended(_) => 1,
        }
    }

    /// For `map_err`: an error of this machine.
    pub(crate) fn here(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::Here { what, source }
    }
}

/// The sentence, its causes, and what to do.
pub(crate) struct Report<'a>(pub(crate) &'a Failure);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = self.0;
        write!(f, "lqx: {failure}")?;
        let mut cause = failure.source();
        // A transparent variant's source is its inner error's source already.
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        if let Failure::Client(
            ClientError::Refused { error, .. } | ClientError::TaskFailed(error),
        ) = failure
        {
            write!(f, "\n  hint: {}", error.hint)?;
            if let Some(id) = &error.request_id {
                write!(f, "\n  request: {id}")?;
            }
        }
        if let Failure::Client(ClientError::Fingerprint { .. }) = failure {
            write!(
                f,
                "\n  hint: if the appliance was installed anew, compare with its console and `lqx login` again"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use api::{ApiError, ErrorCode};
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let error = ApiError {
            request_id: Some("r-7".to_owned()),
            ..ApiError::new(
                ErrorCode::WrongPhase,
                "vm `web` is running",
                "stop it first: lqx vm stop web",
            )
        };
        let failure = Failure::Client(ClientError::Refused { status: 409, error });
        expect![[r#"
            lqx: vm `web` is running
              hint: stop it first: lqx vm stop web
              request: r-7"#]]
        .assert_eq(&Report(&failure).to_string());
        assert_eq!(failure.status(), 1);
    }

    #[test]
    fn an_appliance_out_of_reach_is_told_from_a_refusal() {
        let failure = Failure::Client(ClientError::Connect {
            to: "192.0.2.7:443".to_owned(),
            source: std::io::ErrorKind::ConnectionRefused.into(),
        });
        expect!["lqx: could not connect to 192.0.2.7:443: connection refused"]
            .assert_eq(&Report(&failure).to_string());
        assert_eq!(failure.status(), 3);
        assert_eq!(Failure::Timeout(String::new()).status(), 4);
        assert_eq!(Failure::Usage(String::new()).status(), 2);
    }
}
