//! The scripted model server, over real connections.

mod model;
