//! Images, layers and root filesystems on disk, in the layout of containers/storage.
