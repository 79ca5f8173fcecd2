//! Bytes over TLS that no proper client would send.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, Stream};

/// Takes any certificate: here it is the other side that is under test.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn connect(address: &str) -> Result<(ClientConnection, TcpStream)> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::try_from("lab.invalid")?;
    let stream = dial(address)?;
    Ok((ClientConnection::new(Arc::new(config), name)?, stream))
}

fn dial(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// Greets as a client that knows TLS 1.2 and nothing newer; whether the other side goes on with that. Our own library was
/// built without that version, so the greeting is put together here (RFC 5246 §7.4.1.2).
pub fn agrees_to_tls12(address: &str) -> Result<bool> {
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d][..], // groups: X25519
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],                 // points: uncompressed
        &[0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x04], // ECDSA P-256 SHA-256, RSA-PSS SHA-256
    ]
    .concat();
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x5a; 32]); // random
    hello.push(0); // no session
    hello.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f]); // ECDHE with ECDSA or RSA, AES-128-GCM
    hello.extend([0x01, 0x00]); // no compression
    hello.extend(u16::try_from(extensions.len())?.to_be_bytes());
    hello.extend(extensions);
    let length = u16::try_from(hello.len())?;
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend((length + 4).to_be_bytes());
    record.extend([0x01, 0x00]);
    record.extend(length.to_be_bytes());
    record.extend(hello);

    let mut stream = dial(address)?;
    stream.write_all(&record)?;
    let mut answer = [0; 7];
    match stream.read_exact(&mut answer) {
        // A handshake record: it goes on. An alert is what is right.
        Ok(()) => Ok(answer[0] == 0x16),
        Err(error)
            if error.kind() == ErrorKind::UnexpectedEof
                || error.kind() == ErrorKind::ConnectionReset =>
        {
            Ok(false)
        }
        Err(error) => Err(error).context("waiting for an answer to TLS 1.2"),
    }
}

/// Sends bytes over TLS and returns what comes back until the other side hangs up; nothing when it does so at once.
pub fn ask(address: &str, request: &[u8]) -> Result<String> {
    let (mut connection, mut stream) = connect(address)?;
    let mut tls = Stream::new(&mut connection, &mut stream);
    // Being hung up on in the middle of it is one of the answers.
    let _ = tls.write_all(request).and_then(|()| tls.flush());
    let mut answer = Vec::new();
    let mut buffer = [0; 16384];
    loop {
        match tls.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof
                        | ErrorKind::ConnectionReset
                        | ErrorKind::BrokenPipe
                        | ErrorKind::ConnectionAborted
                ) =>
            {
                break;
            }
            Err(error) => return Err(error).context("waiting for an answer"),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
