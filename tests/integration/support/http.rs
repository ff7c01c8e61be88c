//! HTTP/1.1 over a plain socket, so that a test decides every byte of a request.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take, unless set otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The value of a header that occurs at most once; the name is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice in {self:?}");
        value
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A connection that is kept alive.
pub(crate) struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self {
            stream,
            pending: Vec::new(),
        })
    }

    /// Sets the timeout of each read.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request with these header lines. Adds `Host` if the lines have none.
    pub(crate) fn ask(&mut self, method: &str, target: &str, headers: &[&str]) -> io::Result<Response> {
        let mut request = format!("{method} {target} HTTP/1.1\r\n");
        if !headers
            .iter()
            .any(|line| line.to_ascii_lowercase().starts_with("host:"))
        {
            request.push_str("Host: localhost\r\n");
        }
        for line in headers {
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        self.send(request.as_bytes())?;
        self.response(method)
    }

    /// Sends a POST of type JSON.
    pub(crate) fn post(&mut self, target: &str, json: &str) -> io::Result<Response> {
        let length = json.len();
        let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        self.send(format!("{head}Content-Length: {length}\r\n\r\n{json}").as_bytes())?;
        self.response("POST")
    }

    /// Waits for the first bytes of an answer, and reads no more.
    pub(crate) fn wait_for_some(&self) -> io::Result<()> {
        match self.stream.peek(&mut [0])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads an answer.
    pub(crate) fn response(&mut self, method: &str) -> io::Result<Response> {
        let end = loop {
            if let Some(at) = self.pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.pending.drain(..end + 4).collect();
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {head}")))?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        if headers.contains(&("transfer-encoding".to_owned(), "chunked".to_owned())) {
            let body = self.chunks()?;
            return Ok(Response { status, headers, body });
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = match length {
            _ if method == "HEAD" => 0,
            Some((_, length)) => length.parse().map_err(io::Error::other)?,
            // Every answer of the agent has a length; only answers of the demo have none.
            None => return Err(io::Error::other(format!("no content-length: {head}"))),
        };
        while self.pending.len() < length {
            self.fill()?;
        }
        let body = self.pending.drain(..length).collect();
        Ok(Response { status, headers, body })
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = self.pending.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.fill()?;
            };
            let line: Vec<u8> = self.pending.drain(..end + 2).collect();
            let length = std::str::from_utf8(&line).map_err(io::Error::other)?;
            let length = usize::from_str_radix(length.trim(), 16).map_err(io::Error::other)?;
            while self.pending.len() < length + 2 {
                self.fill()?;
            }
            body.extend(self.pending.drain(..length + 2).take(length));
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            // A read with a time limit is not restarted after a signal, such as that of a child of
            // another test that ended.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.pending.extend_from_slice(&buffer[..read]);
                Ok(())
            }
        }
    }
}

/// Sends a request on a new connection.
pub(crate) fn ask(address: SocketAddr, method: &str, target: &str, headers: &[&str]) -> Response {
    let answer = Connection::open(address).and_then(|mut connection| connection.ask(method, target, headers));
    answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
}

/// Sends a GET on a new connection.
pub(crate) fn get(address: SocketAddr, target: &str) -> Response {
    ask(address, "GET", target, &[])
}
