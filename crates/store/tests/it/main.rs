//! The store, through its doors.
