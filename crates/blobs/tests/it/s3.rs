//! A server that speaks S3, for one test: moto's, from the project's Python environment, which `cargo xtask check` makes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Answers at a free port until its standard input ends, which is when the test has ended, however it did.
const SERVE: &str = "
import sys
import boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
url = 'http://%s:%s' % server.get_host_and_port()
keys = {'aws_access_key_id': 'test', 'aws_secret_access_key': 'test', 'region_name': 'us-east-1'}
boto3.client('s3', endpoint_url=url, **keys).create_bucket(Bucket=sys.argv[1])
print(url, flush=True)
sys.stdin.read()
";

/// The bucket that it has.
pub(crate) const BUCKET: &str = "posthouse-test";

pub(crate) struct Server {
    pub(crate) url: String,
    process: Child,
}

impl Server {
    /// Starts one with an empty bucket; or says why there can be none.
    pub(crate) fn start() -> Result<Self, String> {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
        let mut process = Command::new(&python)
            .args(["-c", SERVE, BUCKET])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!("there is no Python environment ({error}); `cargo xtask check` makes it")
            })?;
        let mut url = String::new();
        let said = process.stdout.take().expect("piped");
        BufReader::new(said).read_line(&mut url).expect("readable");
        let mut server = Self { url: url.trim().to_owned(), process };
        if server.url.is_empty() {
            let ended = server.process.wait().expect("a child of ours");
            return Err(format!("moto's server did not start ({ended}); `cargo xtask check` installs it"));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
