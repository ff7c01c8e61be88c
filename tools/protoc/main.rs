//! Runs the `protoc` that `protoc-bin-vendored` carries, with the well-known types on its include path.

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("pickd's protoc: {error}; set PROTOC to a protoc of your own");
    ExitCode::FAILURE
}

/// Replaces this process, so it returns only when that fails.
fn run() -> Result<std::convert::Infallible, Box<dyn Error>> {
    let protoc = protoc_bin_vendored::protoc_bin_path()?;
    let include = protoc_bin_vendored::include_path()?;
    let error = Command::new(&protoc)
        .args(std::env::args_os().skip(1))
        .arg("-I")
        .arg(include)
        .exec();
    Err(format!("cannot run {}: {error}", protoc.display()).into())
}
