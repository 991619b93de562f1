//! Pages of rows. One row more than is shown is read, and its presence means another page.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use protocol::page::Page;
use protocol::time::Timestamp;
use store::{Cursor, Order};

use crate::cursor::RowCursor;

/// A forward page of `rows`, of which one more than `limit` was asked for. `place` tells where a row stands.
pub(crate) fn forward<T>(
    mut rows: Vec<T>,
    limit: usize,
    list: &str,
    order: Order,
    place: impl Fn(&T) -> (Timestamp, String),
) -> Page<T> {
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next_page = rows.last().filter(|_| has_more).map(|row| {
        let (at, id) = place(row);
        RowCursor::after(list, order, at, &id).encode()
    });
    Page { data: rows, next_page }
}

/// The place that a cursor names, as the store takes it.
pub(crate) fn place(cursor: &RowCursor) -> Cursor {
    Cursor::new(cursor.time(), cursor.id.as_str())
}

/// A list of JSON texts as they lie in the store, without a second look at them.
pub(crate) fn data<'a>(rows: impl Iterator<Item = &'a Bytes>) -> Response {
    json(joined(rows, b"]}"))
}

/// The same as a page.
pub(crate) fn page<'a>(rows: impl Iterator<Item = &'a Bytes>, next_page: Option<String>) -> Response {
    let next_page = serde_json::to_string(&next_page).expect("text is JSON");
    json(joined(rows, format!("],\"next_page\":{next_page}}}").as_bytes()))
}

fn joined<'a>(rows: impl Iterator<Item = &'a Bytes>, end: &[u8]) -> Vec<u8> {
    let mut body = b"{\"data\":[".to_vec();
    for (index, row) in rows.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(row);
    }
    body.extend_from_slice(end);
    body
}

fn json(body: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
