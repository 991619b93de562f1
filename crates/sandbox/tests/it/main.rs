//! The sandbox crate from outside: real supervisors, real sandboxes, real attacks.
//!
//! Every test has a data directory and a supervisor of its own. As root, all of it runs a second time as an ordinary
//! user (`ordinary_user`). What a machine does not allow is never skipped in silence: the test asserts that the doctor's report
//! says so.

mod attacks;
mod host;
mod ordinary_user;
mod provider;
mod supervisor;
