//! This host's certificate, and the authority that signs it: made at first boot, renewed live when addresses change.
//!
//! The authority's fingerprint is what the console shows and clients pin: it is sent in every handshake and stays the
//! same when the host's certificate is made anew. Keys are ECDSA P-256, in files that only their owner reads.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use api::client::Fingerprint;
use api::names::Name;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("could not read or write `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Making or signing.
    #[error("could not make a certificate")]
    Make(#[from] rcgen::Error),
    /// What is in a file is no certificate or key.
    #[error("could not understand `{0}`")]
    Content(String),
    /// Certificate and key do not go together, or TLS refuses them.
    #[error("could not use the certificate")]
    Use(#[from] rustls::Error),
}

/// What the certificate says that this host is called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostNames {
    /// Its name.
    pub name: Option<Name>,
    /// Its addresses now.
    pub addresses: Vec<IpAddr>,
}

/// Certificate and key in use. Clones share them.
#[derive(Clone)]
pub struct TlsIdentity {
    shared: Arc<Shared>,
}

struct Shared {
    /// Where everything is kept; `None`: in memory only.
    dir: Option<PathBuf>,
    authority: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsIdentity")
            .field(&self.fingerprint())
            .finish()
    }
}

impl TlsIdentity {
    /// Reads authority and certificate from `dir`, or makes what is missing. A certificate that does not name this
    /// host's names and addresses is made anew.
    pub fn open(dir: &Path, names: &HostNames) -> Result<Self, TlsError> {
        fs::create_dir_all(dir).map_err(|source| TlsError::File {
            path: dir.to_owned(),
            source,
        })?;
        let (cert_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !(cert_file.exists() && key_file.exists()) {
            let (cert, key) = make_authority()?;
            // The key first: a certificate without its key would be taken for a whole authority.
            write_file(&key_file, key.serialize_pem().as_bytes())?;
            write_file(&cert_file, cert.as_bytes())?;
        }
        Self::assemble(
            Some(dir.to_owned()),
            &read_text(&cert_file)?,
            &read_text(&key_file)?,
            names,
        )
    }

    /// One that is forgotten at the end: a machine booted from a medium keeps nothing.
    pub fn ephemeral(names: &HostNames) -> Result<Self, TlsError> {
        let (cert, key) = make_authority()?;
        Self::assemble(None, &cert, &key.serialize_pem(), names)
    }

    fn assemble(
        dir: Option<PathBuf>,
        cert: &str,
        key: &str,
        names: &HostNames,
    ) -> Result<Self, TlsError> {
        let authority = certificate(cert, "ca.crt")?;
        let issuer = Issuer::from_ca_cert_der(&authority, KeyPair::from_pem(key)?)?;
        let kept = dir
            .as_deref()
            .and_then(|dir| load_host(dir, names).ok().flatten());
        let current = match kept {
            Some((cert, key)) => certified(cert, &authority, key)?,
            None => issue(dir.as_deref(), &authority, &issuer, names)?,
        };
        let current = RwLock::new(Arc::new(current));
        Ok(Self {
            shared: Arc::new(Shared {
                dir,
                authority,
                issuer,
                current,
            }),
        })
    }

    /// Makes the host's certificate anew if it does not name all of `names`. New connections get it at once.
    /// Gives whether it did.
    pub fn renew(&self, names: &HostNames) -> Result<bool, TlsError> {
        let shared = &self.shared;
        let now = shared
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if now.cert.first().is_some_and(|cert| covers(cert, names)) {
            return Ok(false);
        }
        let fresh = issue(
            shared.dir.as_deref(),
            &shared.authority,
            &shared.issuer,
            names,
        )?;
        *shared
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(true)
    }

    /// What the console shows and clients pin.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.shared.authority)
    }

    /// The authority's certificate in DER, to be imported by browsers.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.shared.authority
    }

    /// The server's side of TLS: 1.3 only, HTTP/2 and 1.1.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let resolver = Arc::new(Resolver(self.shared.clone()));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_no_client_auth()
                .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A request in early data could be replayed by anybody.
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }
}

struct Resolver(Arc<Shared>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.0
                .current
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

/// A machine's clock may be wrong at its first boot, and nobody renews an authority that is pinned.
fn long_lived(common_name: String) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "limiquantix");
    params
}

fn make_authority() -> Result<(String, KeyPair), TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = long_lived(format!(
        "limiquantix authority {}",
        uuid::Uuid::new_v4().simple()
    ));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?.pem(), key))
}

fn issue(
    dir: Option<&Path>,
    authority: &CertificateDer<'static>,
    issuer: &Issuer<'static, KeyPair>,
    names: &HostNames,
) -> Result<CertifiedKey, TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = long_lived(
        names
            .name
            .as_ref()
            .map_or("limiquantix".to_owned(), Name::to_string),
    );
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    for name in dns_names(names) {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.try_into()?));
    }
    params.subject_alt_names.extend(
        names
            .addresses
            .iter()
            .map(|address| SanType::IpAddress(*address)),
    );
    let cert = params.signed_by(&key, issuer)?;
    if let Some(dir) = dir {
        // One file for both: a crash between two renames would leave a key that is not the certificate's.
        let both = format!("{}{}", key.serialize_pem(), cert.pem());
        write_file(&dir.join("host.pem"), both.as_bytes())?;
    }
    certified(
        cert.der().clone(),
        authority,
        private_key(&key.serialize_pem(), "host.pem")?,
    )
}

/// The kept certificate, if it names this host as it is now.
fn load_host(
    dir: &Path,
    names: &HostNames,
) -> Result<Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>, TlsError> {
    let text = read_text(&dir.join("host.pem"))?;
    let cert = certificate(&text, "host.pem")?;
    let key = private_key(&text, "host.pem")?;
    Ok(covers(&cert, names).then_some((cert, key)))
}

fn certified(
    cert: CertificateDer<'static>,
    authority: &CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    let chain = vec![cert, authority.clone()];
    Ok(CertifiedKey::from_der(
        chain,
        key,
        &aws_lc_rs::default_provider(),
    )?)
}

fn dns_names(names: &HostNames) -> Vec<String> {
    let own = names.name.as_ref().map(Name::to_string);
    own.into_iter().chain(["localhost".to_owned()]).collect()
}

fn covers(cert: &CertificateDer<'_>, names: &HostNames) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(cert) else {
        return false;
    };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return false;
    };
    let mut said = BTreeSet::new();
    for name in &alternatives.value.general_names {
        match name {
            GeneralName::DNSName(name) => said.insert((*name).to_owned()),
            GeneralName::IPAddress(bytes) => said.insert(address_text(bytes)),
            _ => false,
        };
    }
    let mut wanted = dns_names(names)
        .into_iter()
        .chain(names.addresses.iter().map(IpAddr::to_string));
    wanted.all(|name| said.contains(&name))
}

fn address_text(bytes: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4).to_string()
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6).to_string()
    } else {
        String::new()
    }
}

fn certificate(pem: &str, file: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Content(file.to_owned()))
}

fn private_key(pem: &str, file: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Content(file.to_owned()))
}

fn read_text(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), TlsError> {
    write_private(path, content).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that only its owner reads: wholly or not at all, and for good when this returns.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // What an earlier attempt left may have other rights.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(addresses: &[&str]) -> HostNames {
        HostNames {
            name: Some("lqx-1".parse().unwrap()),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn leaf(identity: &TlsIdentity) -> CertificateDer<'static> {
        identity.shared.current.read().unwrap().cert[0].clone()
    }

    #[test]
    fn a_restart_keeps_both_and_a_new_address_keeps_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = TlsIdentity::open(dir.path(), &names(&["192.0.2.7"])).unwrap();
        let again = TlsIdentity::open(dir.path(), &names(&["192.0.2.7"])).unwrap();
        assert_eq!(leaf(&first), leaf(&again));
        assert_eq!(first.fingerprint(), again.fingerprint());

        assert!(!again.renew(&names(&["192.0.2.7"])).unwrap());
        assert!(again.renew(&names(&["192.0.2.8", "2001:db8::8"])).unwrap());
        assert!(covers(&leaf(&again), &names(&["192.0.2.8", "2001:db8::8"])));
        assert!(!covers(&leaf(&again), &names(&["192.0.2.7"])));
        assert_ne!(leaf(&first), leaf(&again));
        let moved = TlsIdentity::open(dir.path(), &names(&["192.0.2.8"])).unwrap();
        assert_eq!(leaf(&moved), leaf(&again));
        assert_eq!(moved.fingerprint(), first.fingerprint());
    }

    #[test]
    fn nobody_else_reads_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        TlsIdentity::open(dir.path(), &names(&[])).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        }
    }

    #[test]
    fn a_damaged_host_certificate_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let first = TlsIdentity::open(dir.path(), &names(&[])).unwrap();
        fs::write(dir.path().join("host.pem"), "half a").unwrap();
        let again = TlsIdentity::open(dir.path(), &names(&[])).unwrap();
        assert_ne!(leaf(&first), leaf(&again));
        assert_eq!(first.fingerprint(), again.fingerprint());
    }
}
