//! What is written down never holds a secret, in whatever form. The search is shown to find one first.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;

use crate::world::{World, bearer, variable};

const SECRET: &str = "planted/s3cret+with=signs";

/// The secret as it is, in an address, in hexadecimal digits, and the middle of it as base64 at each offset.
fn forms() -> Vec<Vec<u8>> {
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![
        SECRET.to_owned(),
        SECRET.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D"),
        hex.to_uppercase(),
        hex,
    ];
    for offset in 0..3 {
        let text = STANDARD_NO_PAD.encode(format!("{}{SECRET}", "x".repeat(offset)));
        forms.push(text[4..text.len() - 4].to_owned());
    }
    forms.into_iter().map(String::into_bytes).collect()
}

/// The files below a folder that hold one of the forms.
fn found(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(self::found(&path));
            continue;
        }
        let bytes = std::fs::read(&path).expect("readable");
        if forms().iter().any(|form| bytes.windows(form.len()).any(|window| window == form)) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn no_file_of_the_data_directory_holds_a_secret() {
    let world = World::new().await;
    let vault = world.vault().await;
    let credential = world.add(&vault, bearer("https://a.example", SECRET)).await;
    world.add(&vault, variable("A", SECRET)).await;
    let oauth = json!({
        "type": "mcp_oauth", "mcp_server_url": "https://b.example", "access_token": SECRET,
        "refresh": {
            "refresh_token": SECRET, "client_id": "c", "token_endpoint": "https://c.example",
            "token_endpoint_auth": {"type": "client_secret_post", "client_secret": SECRET},
        },
    });
    world.add(&vault, oauth).await;
    world.change(&credential, json!({"auth": {"type": "static_bearer", "token": SECRET}})).await;
    assert_eq!(world.token(&[vault], "https://a.example").await.as_deref(), Some(SECRET));
    assert_eq!(found(world.dir.path()), [""; 0]);
}

#[tokio::test]
async fn the_search_finds_what_is_there_in_every_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let forms = forms();
    for (number, form) in forms.iter().enumerate() {
        let mut text = b"before ".to_vec();
        text.extend_from_slice(form);
        text.extend_from_slice(b" behind");
        std::fs::create_dir_all(dir.path().join("deep")).expect("made");
        std::fs::write(dir.path().join(format!("deep/{number}")), text).expect("written");
    }
    assert_eq!(found(dir.path()).len(), forms.len());
}
