//! Who did what: each write carries its record in the command's `Meta`, so that both are agreed on together.

use api::endpoints::Info;
use api::ids::{AuditId, RequestId};
use api::units::Millis;
use api::users::AuditRecord;

use super::{Caller, From};

/// Longest object name kept: a caller chooses it.
const OBJECT_LEN_MAX: usize = 128;

/// The record of a call. `outcome` is what is known so far; `apply` writes its own judgement over it.
pub fn record(
    caller: &Caller,
    from: From,
    endpoint: &Info,
    object: &str,
    request: RequestId,
    outcome: &str,
) -> AuditRecord {
    AuditRecord {
        id: AuditId::mint(),
        at: Millis::now(),
        who: caller.who().to_owned(),
        from: from.to_string(),
        action: endpoint.name.to_owned(),
        object: object.chars().take(OBJECT_LEN_MAX).collect(),
        outcome: outcome.to_owned(),
        request_id: request.to_string(),
    }
}
