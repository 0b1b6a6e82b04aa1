"""What every member of a family must do, written once and run over all of them."""
