//! The management address: a form of five fields.

use std::net::{IpAddr, Ipv4Addr};

use api::system::{AddressMode, NetworkSettings};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::reversed;
use crate::console::keys::Key;
use crate::console::state::State;

const FIELDS: [&str; 5] = [
    "NIC",
    "Address by",
    "Address/prefix",
    "Gateway",
    "DNS servers",
];

/// The form, as it is being typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkForm {
    field: usize,
    is_static: bool,
    nic: String,
    address: String,
    gateway: String,
    dns: String,
}

impl NetworkForm {
    /// Filled with what is.
    pub fn from_settings(settings: &NetworkSettings) -> Self {
        let (is_static, address, gateway) = match &settings.address {
            AddressMode::Dhcp => (false, String::new(), String::new()),
            AddressMode::Static { address, gateway } => {
                (true, address.clone(), gateway.clone().unwrap_or_default())
            }
        };
        let nic = settings.nic.clone().unwrap_or_default();
        Self {
            field: 0,
            is_static,
            nic,
            address,
            gateway,
            dns: settings.dns.join(" "),
        }
    }

    /// What was typed, checked; else a sentence that says which field is wrong.
    pub fn settings(&self) -> Result<NetworkSettings, String> {
        let address = if self.is_static {
            check_prefix(&self.address)?;
            if !self.gateway.is_empty() && self.gateway.parse::<Ipv4Addr>().is_err() {
                return Err(format!(
                    "the gateway `{}` is not an IPv4 address",
                    self.gateway
                ));
            }
            let gateway = (!self.gateway.is_empty()).then(|| self.gateway.clone());
            AddressMode::Static {
                address: self.address.clone(),
                gateway,
            }
        } else {
            AddressMode::Dhcp
        };
        let dns: Vec<String> = self.dns.split_whitespace().map(str::to_owned).collect();
        if let Some(bad) = dns.iter().find(|server| server.parse::<IpAddr>().is_err()) {
            return Err(format!("the name server `{bad}` is not an address"));
        }
        let nic = (!self.nic.is_empty()).then(|| self.nic.clone());
        Ok(NetworkSettings { nic, address, dns })
    }

    /// One key.
    pub fn on(&mut self, key: Key) {
        match key {
            Key::Next | Key::Down => self.field = (self.field + 1) % FIELDS.len(),
            Key::Up => self.field = (self.field + FIELDS.len() - 1) % FIELDS.len(),
            Key::Char(' ') if self.field == 1 => self.is_static = !self.is_static,
            Key::Char(c) => {
                if let Some(text) = self.text().filter(|text| text.len() < 100) {
                    text.push(c);
                }
            }
            Key::Erase => {
                if let Some(text) = self.text() {
                    text.pop();
                }
            }
            Key::Enter | Key::Back | Key::Redraw => {}
        }
    }

    fn text(&mut self) -> Option<&mut String> {
        match self.field {
            0 => Some(&mut self.nic),
            2 => Some(&mut self.address),
            3 => Some(&mut self.gateway),
            4 => Some(&mut self.dns),
            _ => None,
        }
    }

    fn values(&self) -> [String; 5] {
        let mode = if self.is_static { "static" } else { "DHCP" };
        let nic = if self.nic.is_empty() && self.field != 0 {
            "the first with a link"
        } else {
            &self.nic
        };
        [
            nic.to_owned(),
            mode.to_owned(),
            self.address.clone(),
            self.gateway.clone(),
            self.dns.clone(),
        ]
    }
}

fn check_prefix(text: &str) -> Result<(), String> {
    let parsed = text
        .split_once('/')
        .map(|(ip, prefix)| (ip.parse::<Ipv4Addr>(), prefix.parse::<u8>()));
    match parsed {
        Some((Ok(_), Ok(1..=32))) => Ok(()),
        _ => Err(format!(
            "`{text}` is not an IPv4 address with a prefix length, such as 192.0.2.7/24"
        )),
    }
}

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let form = &state.network_form;
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (index, (name, value)) in FIELDS.iter().zip(form.values()).enumerate() {
        let line = Line::from(format!("{name:<16} {value}"));
        lines.push(if index == form.field {
            line.style(reversed())
        } else {
            line
        });
    }
    lines.push(Line::from(""));
    let now = state
        .system
        .as_ref()
        .map_or(String::new(), |system| system.addresses.join("  "));
    lines.push(Line::from(format!("Now: {now}")));
    let block = Block::bordered().title(" Management network ");
    frame.render_widget(
        Paragraph::new(lines)
            .block(block)
            .wrap(Wrap { trim: false }),
        area,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &str) -> NetworkForm {
        let mut form = NetworkForm::default();
        for c in keys.chars() {
            form.on(if c == '\t' { Key::Next } else { Key::Char(c) });
        }
        form
    }

    #[test]
    fn a_static_address_is_checked_before_it_is_sent() {
        let good = typed("eth0\t \t192.0.2.7/24\t192.0.2.1\t192.0.2.53")
            .settings()
            .expect("good");
        assert_eq!(good.nic.as_deref(), Some("eth0"));
        let gateway = Some("192.0.2.1".to_owned());
        assert_eq!(
            good.address,
            AddressMode::Static {
                address: "192.0.2.7/24".into(),
                gateway
            }
        );
        assert!(typed("\t \t192.0.2.7").settings().is_err());
        assert!(typed("\t \t192.0.2.7/33").settings().is_err());
        assert!(typed("\t\t\t\tnot-an-ip").settings().is_err());
        assert_eq!(
            typed("").settings().expect("DHCP"),
            NetworkSettings::default()
        );
    }
}
