//! AF_XDP rings and frames, and huge-page memory: the unsafe fence under the stack.

pub mod arena;
