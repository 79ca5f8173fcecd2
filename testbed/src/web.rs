//! A web server of this machine for what a test machine fetches: a few paths, HTTP/1.1, one request a connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// What a machine of ours finds this machine under: the other end of QEMU's own network.
const US: &str = "10.0.2.2";

/// What a path has.
#[derive(Debug, Clone)]
pub enum Page {
    /// These bytes.
    Bytes(Vec<u8>),
    /// This file.
    File(PathBuf),
}

/// Serves until the program ends. What is not there is a 404.
#[derive(Debug)]
pub struct Web {
    port: u16,
}

impl Web {
    /// Starts it.
    pub fn serve(pages: Vec<(&'static str, Page)>) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for the web server")?;
        let port = listener.local_addr()?.port();
        let pages = Arc::new(pages);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let pages = pages.clone();
                // A client that hangs up is its own affair.
                thread::spawn(move || answer(stream, &pages));
            }
        });
        Ok(Self { port })
    }

    /// Where a test machine finds a path; the machine must be allowed [outside](crate::machine::MachineConfig::outside).
    pub fn url(&self, path: &str) -> String {
        format!("http://{US}:{}{path}", self.port)
    }
}

fn answer(mut stream: TcpStream, pages: &[(&'static str, Page)]) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        head.push_str(&line);
        line.clear();
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let found = pages.iter().find(|(name, _)| *name == path);
    let (status, bytes) = match found {
        None => ("404 Not Found", b"not here".to_vec()),
        Some((_, Page::Bytes(bytes))) => ("200 OK", bytes.clone()),
        Some((_, Page::File(file))) => ("200 OK", std::fs::read(file)?),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        bytes.len()
    )?;
    stream.write_all(&bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_not_there_is_a_404() {
        let web = Web::serve(vec![("/a", Page::Bytes(b"abc".to_vec()))]).unwrap();
        let get = |path: &str| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, web.port)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(get("/a").ends_with("\r\n\r\nabc"));
        assert!(get("/b").starts_with("HTTP/1.1 404 "));
    }
}
