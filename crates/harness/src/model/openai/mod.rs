//! Chat completions, as OpenAI defined them and as vLLM, Ollama, llama.cpp and many gateways speak them.

mod request;

mod answer;

pub(super) use answer::CompletionReader;
pub(super) use request::body;
