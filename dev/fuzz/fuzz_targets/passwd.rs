//! The image's user, `/etc/passwd` and `/etc/group`. A number is never looked up, and what we write stays one line.
#![no_main]

use criox_cri::v1;
use criox_spec::{ImageFacts, SeccompProfile};
use libfuzzer_sys::fuzz_target;

mod support;

fuzz_target!(|input: (&str, &[u8], &[u8])| {
    let (user, passwd, group) = input;
    let container = v1::ContainerConfig { command: vec!["/bin/true".to_owned()], ..Default::default() };
    let image = ImageFacts { user: user.to_owned(), ..Default::default() };
    let Ok(built) = support::run(&container, &image, passwd, group, SeccompProfile::Default) else { return };
    let name = user.split(':').next().unwrap_or_default();
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        assert_eq!(Ok(built.user.uid), name.parse::<u32>());
    }
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    if let Some(written) = &built.passwd {
        assert!(lines(written) <= lines(passwd) + 2);
    }
});
