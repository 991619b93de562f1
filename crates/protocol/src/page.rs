//! The shapes of lists.

use serde::{Deserialize, Serialize};

/// One page of a list that pages forwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows, in the list's order.
    pub data: Vec<T>,
    /// The cursor of the next page; `None` on the last.
    pub next_page: Option<String>,
}

/// One page of a list that pages both ways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BidirectionalPage<T> {
    /// The rows, in the list's order.
    pub data: Vec<T>,
    /// The cursor of the next page; `None` on the last.
    pub next_page: Option<String>,
    /// The cursor of the page before; `None` on the first.
    pub prev_page: Option<String>,
}
