//! The `castra` binary: the verbs of [`castra::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    castra::cli::main()
}
