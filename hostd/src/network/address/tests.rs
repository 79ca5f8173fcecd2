//! What the management address promises, against a real DHCP server where the machine lets us.

use super::*;

#[test]
fn settings_are_refused_with_a_reason() {
    let fixed = |address: &str, gateway: Option<&str>| NetworkSettings {
        address: AddressMode::Static {
            address: address.to_owned(),
            gateway: gateway.map(str::to_owned),
        },
        ..NetworkSettings::default()
    };
    assert!(validate(&NetworkSettings::default()).is_ok());
    assert!(validate(&fixed("192.0.2.7/24", Some("192.0.2.1"))).is_ok());
    for bad in [
        fixed("192.0.2.7", None),
        fixed("192.0.2.7/0", None),
        fixed("192.0.2.7/33", None),
        fixed("224.0.0.1/4", None),
        fixed("192.0.2.7/24", Some("198.51.100.1")),
        fixed("192.0.2.7/24", Some("192.0.2.7")),
        NetworkSettings {
            nic: Some("a/b".into()),
            ..NetworkSettings::default()
        },
        NetworkSettings {
            nic: Some("".into()),
            ..NetworkSettings::default()
        },
        NetworkSettings {
            dns: vec!["example.org".into()],
            ..NetworkSettings::default()
        },
    ] {
        assert_eq!(
            validate(&bad).unwrap_err().code,
            ErrorCode::Invalid,
            "{bad:?}"
        );
    }
}
