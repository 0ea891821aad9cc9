from aquad.cli import main

main()
