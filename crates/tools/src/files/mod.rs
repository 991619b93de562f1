//! The file tools. Each is a function from its input to an output; a failure is the text that the model
//! sees after `<tool>: `.

pub mod edit;
pub mod glob;
pub mod grep;
pub mod read;
pub mod write;
