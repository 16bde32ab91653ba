"""One file per revision of the database, each naming the one before; never edited afterwards."""
