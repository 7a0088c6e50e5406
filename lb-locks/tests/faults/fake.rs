//! A server of our own that speaks RESP and answers what a test wants.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

type Answer = dyn Fn(&[String]) -> String + Send + Sync;

/// Answers on a port of 127.0.0.1, and remembers what it was asked. Its threads end with its connections.
pub struct FakeServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
}

impl FakeServer {
    /// `answer` is asked for all but the words of a new connection, which are all well.
    pub fn start(answer: impl Fn(&[String]) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, asked_of): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), answer, asked) = (stream, Arc::clone(&answer), Arc::clone(&asked_of)) else { return };
                std::thread::spawn(move || serve(stream, &*answer, &asked));
            }
        });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Every command until now.
    pub fn asked(&self) -> Vec<Vec<String>> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, answer: &Answer, asked: &Mutex<Vec<Vec<String>>>) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(command) = read_command(&mut reader) {
        let reply = match command[0].to_uppercase().as_str() {
            "CLIENT" | "HELLO" | "SELECT" | "PING" => "+OK\r\n".to_owned(),
            "CONFIG" => {
                let value = match command[2].as_str() {
                    "maxmemory-policy" => "noeviction",
                    "appendonly" => "yes",
                    _ => "always",
                };
                array(&[command[2].as_str(), value])
            }
            _ => answer(&command),
        };
        asked.lock().unwrap().push(command);
        if writer.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut line = || -> Option<String> {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let count: usize = line()?.strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut length = String::new();
        reader.read_line(&mut length).ok()?;
        let length: usize = length.trim_end().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(length);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    (!words.is_empty()).then_some(words)
}

/// An array of strings.
pub fn array(words: &[&str]) -> String {
    let parts: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{parts}", words.len())
}
