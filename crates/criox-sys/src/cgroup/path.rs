//! Names of cgroups: systemd's nesting of slices, and the forms that OCI runtimes take.

use super::{CgroupError, Driver};

/// The path of a slice: `a-b.slice` lies in `a.slice` (systemd.slice(5)), so this is `/a.slice/a-b.slice`.
/// `-.slice` is the root, `/`.
pub fn slice_path(slice: &str) -> Result<String, CgroupError> {
    let bad = || CgroupError::BadSlice(slice.to_owned());
    let name = slice.strip_suffix(".slice").ok_or_else(bad)?;
    if name == "-" {
        return Ok("/".to_owned());
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.split('-').any(str::is_empty) || !name.chars().all(valid) {
        return Err(bad());
    }
    let mut path = String::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push('/');
        path.push_str(&name[..end]);
        path.push_str(".slice");
    }
    Ok(path)
}

/// `linux.cgroupsPath` of an OCI spec for the container `id` below `parent`: `parent:crio:id` for systemd
/// (`parent` is a slice's name, or a path that ends in one), `/parent/crio-id` for cgroupfs.
pub fn oci_cgroups_path(driver: Driver, parent: &str, id: &str) -> String {
    match driver {
        Driver::Systemd => format!("{}:crio:{id}", parent.rsplit('/').next().unwrap_or(parent)),
        Driver::Cgroupfs => container_cgroupfs(parent, id),
    }
}

/// Where the container's cgroup then is: `/…/parent.slice/crio-id.scope` or `/parent/crio-id`.
pub fn container_path(driver: Driver, parent: &str, id: &str) -> Result<String, CgroupError> {
    match driver {
        Driver::Systemd => {
            let slice = slice_path(parent.rsplit('/').next().unwrap_or(parent))?;
            Ok(format!("{}/crio-{id}.scope", slice.trim_end_matches('/')))
        }
        Driver::Cgroupfs => Ok(container_cgroupfs(parent, id)),
    }
}

fn container_cgroupfs(parent: &str, id: &str) -> String {
    let parent = parent.trim_matches('/');
    if parent.is_empty() { format!("/crio-{id}") } else { format!("/{parent}/crio-{id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_slice(name: &str, expected: Option<&str>) {
        assert_eq!(slice_path(name).ok().as_deref(), expected, "{name}");
    }

    #[test]
    fn a_slice_lies_in_the_slices_that_its_name_begins_with() {
        check_slice("kubepods.slice", Some("/kubepods.slice"));
        check_slice("kubepods-besteffort.slice", Some("/kubepods.slice/kubepods-besteffort.slice"));
        check_slice(
            "kubepods-besteffort-pod1_2.slice",
            Some("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"),
        );
        check_slice("-.slice", Some("/"));
    }

    #[test]
    fn names_that_are_no_slices_are_refused() {
        for name in ["", "kubepods", ".slice", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice", "a b.slice"]
        {
            check_slice(name, None);
        }
    }

    #[test]
    fn runtimes_get_their_own_form_of_a_path() {
        assert_eq!(
            oci_cgroups_path(Driver::Systemd, "kubepods-pod1.slice", "x"),
            "kubepods-pod1.slice:crio:x"
        );
        assert_eq!(
            oci_cgroups_path(Driver::Systemd, "/kubepods.slice/kubepods-pod1.slice", "x"),
            "kubepods-pod1.slice:crio:x"
        );
        assert_eq!(oci_cgroups_path(Driver::Cgroupfs, "/kubepods/pod1/", "x"), "/kubepods/pod1/crio-x");
        assert_eq!(oci_cgroups_path(Driver::Cgroupfs, "/", "x"), "/crio-x");
    }

    #[test]
    fn a_container_lies_below_its_parent() {
        let systemd = container_path(Driver::Systemd, "kubepods-pod1.slice", "x").ok();
        assert_eq!(systemd.as_deref(), Some("/kubepods.slice/kubepods-pod1.slice/crio-x.scope"));
        assert_eq!(container_path(Driver::Cgroupfs, "pod1", "x").ok().as_deref(), Some("/pod1/crio-x"));
    }
}
