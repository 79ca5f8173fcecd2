//! Which request does what in which phase. Pure.

use super::{Phase, VmRequest};

/// What a supervisor does about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Press the power button.
    Press,
    /// Ask the process to end, and end it when it does not.
    End,
    /// Nothing: it is over, or nobody would notice.
    Nothing,
}

/// The answer to a request.
pub fn answer(phase: &Phase, request: VmRequest) -> Action {
    match (phase, request) {
        (Phase::Ended(_), VmRequest::PowerButton | VmRequest::Kill) => Action::Nothing,
        // No guest runs that could see it; whoever wants it down asks again.
        (Phase::Starting | Phase::Paused, VmRequest::PowerButton) => Action::Nothing,
        (Phase::Running, VmRequest::PowerButton) => Action::Press,
        (Phase::Starting | Phase::Running | Phase::Paused, VmRequest::Kill) => Action::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::vms::VmExit;

    #[test]
    fn only_a_running_guest_has_its_button_pressed_and_only_the_living_are_ended() {
        let over = Phase::Ended(VmExit::GuestPowerOff);
        for (phase, button, kill) in [
            (&Phase::Starting, Action::Nothing, Action::End),
            (&Phase::Running, Action::Press, Action::End),
            (&Phase::Paused, Action::Nothing, Action::End),
            (&over, Action::Nothing, Action::Nothing),
        ] {
            assert_eq!(answer(phase, VmRequest::PowerButton), button, "{phase:?}");
            assert_eq!(answer(phase, VmRequest::Kill), kill, "{phase:?}");
        }
    }
}
