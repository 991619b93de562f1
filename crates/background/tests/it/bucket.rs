//! A bucket that speaks as much of S3 as putting a blob takes, and does not answer of some keys.

use std::io;

use blobs::Blobs;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Ends with this value.
pub(crate) struct Bucket {
    pub(crate) blobs: Blobs,
    _serving: JoinSet<()>,
}

impl Bucket {
    /// One that takes everything, but never answers where `stuck` is in the path.
    pub(crate) async fn stuck_on(stuck: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let variables = [
            ("AWS_ENDPOINT_URL", url.as_str()),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let blobs = Blobs::at("s3://bucket", variables).expect("an address");
        let (stuck, mut serving) = (stuck.to_owned(), JoinSet::new());
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let stuck = stuck.clone();
                connections.spawn(async move { drop(serve(stream, &stuck).await) });
            }
        });
        Self { blobs, _serving: serving }
    }
}

async fn serve(stream: TcpStream, stuck: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        stream.read_exact(&mut vec![0; length]).await?;
        if request.contains(stuck) {
            std::future::pending::<()>().await;
        }
        let body = match (request.starts_with("POST"), request.contains("uploads")) {
            (true, true) => {
                "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            }
            (true, false) => {
                "<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
            }
            (false, _) => "",
        };
        let head = format!("HTTP/1.1 200 OK\r\netag: part\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
    }
}
