//! A bare HTTP client, for answers as they come over the wire, and a headless browser.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Ends a hang; no test waits for so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, status line and headers.
    pub head: String,
    /// The body.
    pub body: String,
}

/// GETs a path.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// The DOM of a page in a headless browser, after its scripts ran for a while of the browser's own
/// virtual time. With a picture's path the page is also drawn, this many pixels wide.
pub fn browse(url: &str, picture: Option<(&Path, u32)>) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Command::new("chromium");
    browser
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--virtual-time-budget=4000", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.path().display()));
    match picture {
        None => browser.arg("--dump-dom"),
        Some((path, width)) => {
            browser.arg(format!("--screenshot={}", path.display())).arg(format!("--window-size={width},2400"))
        }
    };
    let output = browser
        .arg(url)
        .stderr(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("run chromium: {error}: deploy/test-tools.sh installs it"));
    assert!(output.status.success(), "chromium {url}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
