//! How single programs are linked. What holds for all of them stands in `lb-userspace/build.rs`.

fn main() {
    for arg in [
        // Without it every field of a packet is read byte by byte. A program that wants it keeps its stack aligned by
        // itself, as the verifier asks there what it does not ask of packets.
        "--cpu-features=+allows-misaligned-mem-access",
        // Copies and fills as loads and stores; otherwise the longer ones are calls, which the verifier refuses.
        "--disable-expand-memcpy-in-order",
    ] {
        for bin in ["weir_lb", "weir_bench"] {
            println!("cargo:rustc-link-arg-bin={bin}={arg}");
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
}
