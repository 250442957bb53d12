//! Configuration files, and the questions that are asked of them: the first byte chooses the format.
#![no_main]

use std::path::Path;

use criox_config::value::ShortNameMode;
use criox_config::{AuthFile, Config, Policy, Registries, StorageConf, StoreOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((format, bytes)) = data.split_first() else { return };
    let path = Path::new("fuzz");
    match format % 5 {
        0 => drop(Config::parse(path, bytes)),
        1 => {
            let Ok(registries) = Registries::parse(path, bytes) else { return };
            for (host, repository) in [("docker.io", "library/busybox"), ("a.example.com:5000", "x/y")] {
                if let Ok(endpoints) = registries.resolve(host, repository, false) {
                    assert!(endpoints.iter().all(|endpoint| !endpoint.host.is_empty()));
                }
            }
            drop(registries.resolve_short_name("busybox", ShortNameMode::Enforcing));
        }
        2 => {
            let Ok(storage) = StorageConf::parse(path, bytes) else { return };
            drop(StoreOptions::parse(&storage.driver_options()));
        }
        3 => {
            let Ok(policy) = Policy::parse(path, bytes) else { return };
            drop(policy.evaluate("quay.io", "t/app", ":v1"));
            drop(policy.evaluate("a.e.com:5000", "x", "@sha256:0"));
        }
        _ => {
            let Ok(auth) = AuthFile::parse(path, bytes) else { return };
            drop(auth.lookup("quay.io", "t/app"));
        }
    }
});
