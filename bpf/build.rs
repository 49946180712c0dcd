//! Compiles the steering program and generates its skeleton.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/steer.bpf.c";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("steer.skel.rs");
    if let Err(error) =
        SkeletonBuilder::new().source(SOURCE).clang_args(include_dirs()).build_and_generate(&out)
    {
        panic!("{SOURCE}: {error:#}\nIt needs clang, libelf-dev, zlib1g-dev and linux-libc-dev.");
    }
    println!("cargo:rerun-if-changed={SOURCE}");
}

/// The kernel's `asm/` headers lie in a directory named after the machine's triplet on Debian;
/// clang does not look there when its target is `bpf`. The compiler knows the name.
fn include_dirs() -> Vec<String> {
    let triplet = ["cc", "gcc"].iter().find_map(|compiler| {
        let out = Command::new(compiler).arg("-print-multiarch").output().ok()?;
        let name = String::from_utf8(out.stdout).ok()?.trim().to_owned();
        (out.status.success() && !name.is_empty()).then_some(name)
    });
    triplet.map(|name| format!("-I/usr/include/{name}")).into_iter().collect()
}
